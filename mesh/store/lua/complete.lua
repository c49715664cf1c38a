-- complete: record the outcome of a run and take the lease of its callback in one step.
-- Keys: partition root. Arguments: msgpack {run, attempt, event ('succeed', 'fail', 'cancel'), code, session, answered,
--   callback_lease_ms, alone, instance}, which many have alike (`remembered`), id, outcome.
--   `alone` 1: no other gateway lives that could wait for a message (a late joiner looks again by itself).
--   `answered` 1: the caller's first request is still open and gets this outcome, so no callback is owed (P80).
-- Reply: {'done', now, seq, endpoint with a waiting line or '', callback work or false [, 1: it has a journal]}
--     or {'same', closed_at, seq}: an equal duplicate
--     or {'dropped', now, state}: failure of a superseded attempt, or its `canceled` that no caller asked for.
-- Refuses: UNKNOWN, STALE_RUN, LEASE_LOST, OTHER_OUTCOME. Flag allow-oom: what is under way may always end.

local known_end, note_end = memory()

-- How an operation with this head ends now by this answer, where one like it did before, that had gone the same way and was as
-- old.
local function like_end(root, gather, packed, head, now)
  local ms = age(head, now)
  local like = ms >= 0 and ms < LIMIT.alike_ms and known_end(packed, string.char(ms) .. way_of(head))
  if not like or like.root ~= root then return nil end
  like.head = like.frame .. struct.pack('>I8', now - ms) .. like.way
  like.at, like.now, like.place = now - ms + like.after, now, nil
  note_in(gather, packed, head, like)
  return like
end

local function end_alike(root, gather, like, record, id, outcome)
  if gather then touch(gather, id) end
  redis.call('HSET', record, 'r', outcome, 'h', like.head)
  if like.held then take(gather, like.held, id) end
  put(gather, like.timers, like.at, id)
  if like.told then redis.call('PUBLISH', root .. CHANNEL.operation .. id, like.told) end
  if like.place then return like.place end
  like.place = gather and gather.place
  return { 'done', like.now, like.seq, '', false }
end

-- Notes what `op`, which just ended, is to those that are as it was. Only what nothing else hangs on: no place that it had
-- (`slot`, or in line), no callback that is owed, and nobody who waits for it or that it keeps count of: such heads are short.
local function note_alike(gather, packed, op, head, slot, told)
  if slot > 0 or owed(op.callback) or op.was_blocked ~= '' or not (head_was_short(head) and head_is_short(op)) then return end
  local root, now, at, owner = op.root, op.closed_at, timer_at(op), op.was_owner
  local ms, message = now - op.created_at, told and op.seq .. ' ' .. op.state
  local like = {
    root = root, frame = frame_of(op.packed), way = way_of(op.packed), after = at - op.created_at, head = op.packed, at = at,
    timers = timer_key(root, ''), held = owner ~= '' and timer_key(root, owner), told = message, now = now, seq = op.seq,
    place = gather and gather.place,
  }
  note_in(gather, packed, head, like)
  if ms >= 0 and ms < LIMIT.alike_ms then note_end(packed, string.char(ms) .. way_of(head), like) end
end

local complete_arguments = remembered('run', 'attempt', 'event', 'code', 'session', 'answered', 'callback_lease_ms', 'alone',
  'instance')

local function complete_one(root, gather, packed, id, outcome)
  local _ = #id + #outcome -- a missing argument fails here, before the first write
  local record = root .. KEY.operation .. id
  local head = redis.call('HGET', record, 'h')
  local likes = gather and gather.alike[packed]
  local like = likes and likes[head]
  if like then return end_alike(root, gather, like, record, id, outcome) end
  if not head then return refuse('UNKNOWN', id) end
  local now = gather and gather.now or now_ms()
  like = like_end(root, gather, packed, head, now)
  if like then return end_alike(root, gather, like, record, id, outcome) end
  local a = complete_arguments(packed)
  local op = decode_head(head, id, root)
  if a.run ~= op.run then return refuse('STALE_RUN', id) end
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
    local late = a.attempt < op.attempt and (op.beat_ms ~= 0 or op.journal == 1)
    if late and show_refused(op, a.attempt, now, 'complete') then save(op) end
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
  note_alike(gather, packed, op, head, slot, a.alone == 0)
  return reply
end

local function mesh1_complete(keys, argv)
  return complete_one(keys[1], nil, unpack(argv))
end
