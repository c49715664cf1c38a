-- release: the attempt surely did not reach an agent; give the attempt number and the slot back and wait in line.
-- Keys: partition root. Arguments: msgpack {id, run, attempt, session, reason}.
-- Reply: {'waiting', now, endpoint with a waiting line or ''} or {'canceled', now} or {'same', now, state}.
-- Refuses: UNKNOWN. Flag allow-oom. Effects: event blocked, once per reason in a row.
local function mesh1_release(keys, argv)
  local root = keys[1]
  local a = given(argv[1], 'id', 'run', 'attempt', 'reason')
  local op = load(root, a.id)
  if not op then return refuse('UNKNOWN', a.id) end
  local now = now_ms()
  -- The number is used again, so it does not tell a repeated release from one of the next holder; the session does.
  local others = (a.session or '') ~= '' and a.session ~= op.owner
  if a.run ~= op.run or a.attempt ~= op.attempt or op.state ~= S.scheduled or op.start ~= D.leased or others then
    return { 'same', now, op.state }
  end
  if op.cancel_asked == 1 then
    apply(op, 'cancel')
    settle(op, now, E.canceled)
    save(op, 'r', cmsgpack.pack({ 'mesh', 'canceled_before_start' }))
    tell(op)
    return { 'canceled', now }
  end
  apply(op, 'block')
  apply_delivery(op, 'start', 'defer')
  op.start_at = now
  op.attempt = op.attempt - 1
  op.blocked = a.reason
  free_slot(op)
  emit(op, E.blocked, now, a.reason)
  save(op)
  tell(op)
  return { 'waiting', now, '' }
end
