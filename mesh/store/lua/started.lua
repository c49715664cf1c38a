-- started: the handler answered 201; keep its token, hand the start lease back, arm the running timers.
-- Keys: partition root. Arguments: msgpack {id, run, attempt, session, beat_ms, cancel_lease_ms, instance
--   [, counted: 1, the instance has a version]}, agent token,
--   packed links or ''.
-- Reply: {'started' | 'same', now, state, cancel work or false}. A cancel that was asked before the token was known
--   (and the courtesy cancel of an operation that ended meanwhile) is leased to `session` in the same step (I17).
-- Refuses: UNKNOWN. Flag allow-oom.
local function mesh1_started(keys, argv, gather)
  local root = keys[1]
  local a = given(argv[1], 'id', 'run', 'attempt', 'session', 'beat_ms', 'cancel_lease_ms', 'instance')
  local token = assert(argv[2])
  local op = load(root, a.id)
  if not op then return refuse('UNKNOWN', a.id) end
  local now = gather and gather.now or now_ms()
  op.gather = gather
  if a.run ~= op.run then return { 'same', now, op.state, false } end
  -- A suspended attempt is over, however late its 201 is booked.
  local late = a.attempt ~= op.attempt or op.suspended > 0 or apply(op, 'start') ~= 'moved'
  if late then
    -- The outcome came first, or the attempt was given up: only an operation that ended without its handler knowing
    -- still has something to say to it.
    local orphan = op.attempt == a.attempt and (op.state == S.timed_out or (op.state == S.canceled and op.cancel_asked == 1))
    if not orphan or op.cancel ~= D.none then return { 'same', now, op.state, false } end
  else
    -- The attempt may have been given up, and may even wait in line to be sent again, when its 201 comes after all.
    local ep = op.start == D.due and endpoint_of(root, op.endpoint)
    if ep then take_slot(op, ep) end
    op.blocked = ''
    op.start = D.delivered
    op.start_at = 0
    op.start_by = 0 -- schedule-to-start ends here (P101), also for the attempts after a lost one
    if op.run_ms > 0 then op.finish_by = now + op.run_ms end
    if a.beat_ms > 0 then op.beat_ms = a.beat_ms end
    if op.beat_ms > 0 then op.beat_by = now + op.beat_ms end
    if a.counted == 1 then count_at(op, a.instance) end
    emit(op, E.started, now, nil, nil, a.instance)
  end
  local sent = (late or op.cancel_asked == 1) and owe_cancel(op, a.session, now, a.cancel_lease_ms)
  local links = argv[3] or ''
  if links ~= '' then save(op, 't', token, 'l', links) else save(op, 't', token) end
  tell(op)
  return { late and 'same' or 'started', now, op.state, sent and work(op, 'cancel') }
end
