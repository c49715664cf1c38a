-- complete: record the outcome of a run and take the lease of its callback in one step.
-- Keys: partition root. Arguments: msgpack {run, attempt, event ('succeed', 'fail', 'cancel'), code, session, answered,
--   callback_lease_ms, alone, instance}, which many have alike (`remembered`), id, outcome.
--   `alone` 1: no other gateway lives that could wait for a message (a late joiner looks again by itself).
--   `answered` 1: the caller's first request is still open and gets this outcome, so no callback is owed (P80).
-- Reply: {'done', now, seq, endpoint with a waiting line or '', callback work or false [, 1: it has a journal]}
--     or {'same', closed_at, seq}: an equal duplicate
--     or {'dropped', now, state}: failure of a superseded attempt, or its `canceled` that no caller asked for.
-- Refuses: UNKNOWN, STALE_RUN, LEASE_LOST, OTHER_OUTCOME. Flag allow-oom: what is under way may always end.
local complete_arguments = remembered('run', 'attempt', 'event', 'code', 'session', 'answered', 'callback_lease_ms', 'alone',
  'instance')

local function complete_one(root, gather, packed, id, outcome)
  local a = complete_arguments(packed)
  local _ = #id + #outcome -- a missing argument fails here, before the first write
  local op = load(root, id)
  if not op then return refuse('UNKNOWN', id) end
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
  if verdict == 'same' and redis.call('HGET', root .. KEY.operation .. id, 'r') == outcome then
    return { 'same', op.closed_at, op.seq }
  end
  if verdict ~= 'moved' then
    if a.attempt < op.attempt and op.journal == 1 and show_refused(op, a.attempt, now, 'complete') then save(op) end
    return refuse('OTHER_OUTCOME', id)
  end
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
  return reply
end

local function mesh1_complete(keys, argv)
  return complete_one(keys[1], nil, unpack(argv))
end
