-- complete: record the outcome of a run and take the lease of its callback in one step.
-- Keys: partition root. Arguments: msgpack {run, attempt, event ('succeed', 'fail', 'cancel'), code, session, answered,
--   callback_lease_ms, alone, instance}, which many have alike (`remembered`), id, outcome.
--   `alone` 1: no other gateway lives that could wait for a message (a late joiner looks again by itself).
--   `answered` 1: the caller's first request is still open and gets this outcome, so no callback is owed (P80).
-- Reply: {'done', now, seq, endpoint with a waiting line or '', callback work or false [, 1: it has a journal]}
--     or {'same', closed_at, seq}: an equal duplicate
--     or {'dropped', now, state}: failure of a superseded attempt, or its `canceled` that no caller asked for.
-- Refuses: UNKNOWN, STALE_RUN, LEASE_LOST, OTHER_OUTCOME. Flag allow-oom: what is under way may always end.

-- An operation with the head that another had which ended earlier in this `gather`, by the same answer, ends as that did: they
-- were accepted and sent in one call too.
local function end_alike(gather, like, record, id, outcome)
  local op = like.op
  if not like.timers then
    like.at, like.timers, like.held = timer_at(op), timer_key(op.root, ''), timer_key(op.root, like.owner)
  end
  touch(gather, id)
  redis.call('HSET', record, 'h', op.packed, 'r', outcome)
  if like.owner ~= '' then take(gather, like.held, id) end
  put(gather, like.timers, like.at, id)
  if like.told then redis.call('PUBLISH', op.root .. CHANNEL.operation .. id, op.seq .. ' ' .. op.state) end
  return like.place
end

-- What `op`, which just ended, is to those that have the head that it had. Only what nothing else hangs on: no place that it
-- had (`slot`, or in line), no callback that is owed, and nobody who waits for it or that it keeps count of: such heads are short.
local function note_alike(gather, packed, op, head, slot, told)
  if slot > 0 or owed(op.callback) or op.was_blocked ~= '' or not (head_was_short(head) and head_is_short(op)) then return end
  gather.alike[packed] = gather.alike[packed] or {}
  gather.alike[packed][head] = { op = op, owner = op.was_owner, told = told, place = gather.place }
end

local complete_arguments = remembered('run', 'attempt', 'event', 'code', 'session', 'answered', 'callback_lease_ms', 'alone',
  'instance')

local function complete_one(root, gather, packed, id, outcome)
  local _ = #id + #outcome -- a missing argument fails here, before the first write
  local record = root .. KEY.operation .. id
  local head = redis.call('HGET', record, 'h')
  if not head then return refuse('UNKNOWN', id) end
  local likes = gather and gather.alike[packed]
  local like = likes and likes[head]
  if like then return end_alike(gather, like, record, id, outcome) end
  local a = complete_arguments(packed)
  local op = decode_head(head, id, root)
  if a.run ~= op.run then return refuse('STALE_RUN', id) end
  local now = gather and gather.now or now_ms()
  op.gather = gather
  local live = op.state < S.succeeded
  if live and (a.attempt ~= op.attempt or op.suspended > 0) then
    if op.beat_ms ~= 0 or op.journal == 1 then
      if a.attempt ~= op.attempt and show_refused(op, a.attempt, now, 'complete') then save(op) end
      return refuse('LEASE_LOST', id)
    end
    local wanted = a.event == 'succeed' or (a.event == 'cancel' and op.cancel_asked == 1)
    if not wanted then return { 'dropped', now, op.state } end
  end
  local verdict = apply(op, a.event)
  if verdict == 'same' and redis.call('HGET', record, 'r') == outcome then
    return { 'same', op.closed_at, op.seq }
  end
  if verdict ~= 'moved' then
    if a.attempt < op.attempt and op.journal == 1 and show_refused(op, a.attempt, now, 'complete') then save(op) end
    return refuse('OTHER_OUTCOME', id)
  end
  local slot = op.slot
  if owed(op.start) then apply_delivery(op, 'start', 'deliver') end
  settle(op, now, a.code, nil, a.instance ~= '' and a.instance or op.instance)
  local told = false
  if op.callback == D.due then
    if a.answered == 1 and op.wants_callback == 1 then
      apply_delivery(op, 'callback', 'drop')
    elseif listed(root, a.session) then
      lease_callback(op, a.session, now, a.callback_lease_ms)
      told = true
    end
  end
  save(op, 'r', outcome)
  if a.alone == 0 then tell(op) end
  local reply = { 'done', now, op.seq, waiting_line(op), told and work(op, 'callback') }
  if op.journal == 1 then reply[6] = 1 end
  if gather then note_alike(gather, packed, op, head, slot, a.alone == 0) end
  return reply
end

local function mesh1_complete(keys, argv)
  return complete_one(keys[1], nil, unpack(argv))
end
