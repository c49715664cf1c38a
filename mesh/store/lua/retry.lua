-- retry: the attempt failed in a way worth repeating; back off, or end when no attempt is left.
-- Keys: partition root. Arguments: msgpack {id, run, attempt, delay_ms, detail}, outcome for the last attempt.
-- Reply: {'backing_off', now, due_at, endpoint with a waiting line or ''} or {'exhausted', now, seq, endpoint...}
--     or {'canceled', now, seq, ...}: a cancel was asked meanwhile, so nothing is sent again
--     or {'same', now, state}: superseded or ended.
-- Refuses: UNKNOWN. Flag allow-oom.
local function mesh1_retry(keys, argv)
  local root = keys[1]
  local a = given(argv[1], 'id', 'run', 'attempt', 'delay_ms')
  local outcome = assert(argv[2])
  local op = load(root, a.id)
  if not op then return refuse('UNKNOWN', a.id) end
  local now = now_ms()
  if a.run ~= op.run or a.attempt ~= op.attempt or op.state ~= S.scheduled or op.start ~= D.leased then
    return { 'same', now, op.state }
  end
  emit(op, E.attempt_failed, now, a.detail)
  if op.cancel_asked == 1 then
    apply(op, 'cancel')
    settle(op, now, E.canceled)
    save(op, 'r', cmsgpack.pack({ 'mesh', 'canceled_before_start' }))
    tell(op)
    return { 'canceled', now, op.seq, waiting_line(op) }
  end
  if op.attempts_max > 0 and op.attempt >= op.attempts_max then
    apply(op, 'exhaust')
    settle(op, now, E.failed, 'attempts_exhausted')
    save(op, 'r', outcome)
    tell(op)
    return { 'exhausted', now, op.seq, waiting_line(op) }
  end
  apply(op, 'retry')
  apply_delivery(op, 'start', 'defer')
  op.start_at = now + a.delay_ms
  free_slot(op)
  save(op)
  tell(op)
  return { 'backing_off', now, op.start_at, waiting_line(op) }
end
