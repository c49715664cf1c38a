-- cancel: the caller no longer wants the operation (decision 16).
-- Keys: partition root. Arguments: msgpack {id, ns, session, cancel_lease_ms, callback_lease_ms}.
-- Reply: {'canceled', now, seq, callback work or false}: nothing was out there
--     or {'requested', now, state, cancel work or false}: remembered; sent at once when the agent's token is known
--     or {'same', now, state}: a repeat, or the operation has ended.
-- Refuses: UNKNOWN (also for another namespace). Flag allow-oom.
local function mesh1_cancel(keys, argv)
  local root = keys[1]
  local a = given(argv[1], 'id', 'ns', 'session', 'cancel_lease_ms', 'callback_lease_ms')
  local op = load(root, a.id)
  if not op or op.namespace ~= a.ns then return refuse('UNKNOWN', a.id) end
  local now = now_ms()
  if op.state >= S.succeeded or op.cancel_asked == 1 then return { 'same', now, op.state } end
  op.cancel_asked = 1
  emit(op, E.cancel_requested, now)
  if op.state == S.backing_off or (op.state == S.scheduled and op.start == D.due) then
    apply(op, 'withdraw')
    settle(op, now, E.canceled)
    local told = op.callback == D.due and listed(root, a.session)
    if told then lease_callback(op, a.session, now, a.callback_lease_ms) end
    save(op, 'r', cmsgpack.pack({ 'mesh', 'canceled_before_start' }))
    tell(op)
    return { 'canceled', now, op.seq, told and work(op, 'callback') }
  end
  apply(op, 'request_cancel')
  -- Another session may hold this operation's lease; the one timer entry stays with it then, and it sends the cancel
  -- when `started` tells it to. A started operation has no start in flight, so the lease is free to take.
  -- Who fetched the attempt has no address: it hears at its polls and heartbeats.
  local fetched = held(op)
  local sent = op.state == S.started and not fetched and owe_cancel(op, a.session, now, a.cancel_lease_ms)
  save(op)
  tell(op)
  if fetched then tell_holder(op) end
  return { 'requested', now, op.state, sent and work(op, 'cancel') }
end
