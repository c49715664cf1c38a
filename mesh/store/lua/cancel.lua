-- Somebody wants the operation ended. Returns the outcome when it ended here, for nothing is out there that could say
-- how; one with a journal is dispatched again instead, since only its handler can wind it up.
local function ask_to_end(op, now)
  op.cancel_asked = 1
  emit(op, E.cancel_requested, now)
  local idle = op.state == S.backing_off or (op.state == S.scheduled and op.start == D.due)
  if idle and (op.journal == 0 or op.blocked == 'endpoint_deleted') then
    apply(op, 'withdraw')
    settle(op, now, E.canceled)
    return cmsgpack.pack({ 'mesh', 'canceled_before_start' })
  end
  apply(op, 'request_cancel')
  if op.start == D.due then
    op.start_at = now
    op.woke = true
  end
  return nil
end

-- cancel: the caller no longer wants the operation (P31).
-- Keys: partition root. Arguments: msgpack {id, ns, session, cancel_lease_ms, callback_lease_ms}.
-- Reply: {'canceled', now, seq, callback work or false, '*' to look or ''}: nothing was out there
--     or {'requested', now, state, cancel work or false, '*' to look or ''}: remembered; sent at once when the agent's token is known
--     or {'same', now, state}: a repeat, or the operation has ended.
-- Refuses: UNKNOWN (also for another namespace). Flag allow-oom.
local function mesh1_cancel(keys, argv)
  local root = keys[1]
  local a = given(argv[1], 'id', 'ns', 'session', 'cancel_lease_ms', 'callback_lease_ms')
  local op = load(root, a.id)
  if not op or op.namespace ~= a.ns then return refuse('UNKNOWN', a.id) end
  local now = now_ms()
  if op.state >= S.succeeded or op.cancel_asked == 1 then return { 'same', now, op.state } end
  local outcome = ask_to_end(op, now)
  if outcome then
    local told = op.callback == D.due and listed(root, a.session)
    if told then lease_callback(op, a.session, now, a.callback_lease_ms) end
    save(op, 'r', outcome)
    tell(op)
    return { 'canceled', now, op.seq, told and work(op, 'callback'), waiting_line(op) }
  end
  -- Another session may hold this operation's lease; the one timer entry stays with it then, and it sends the cancel
  -- when `started` tells it to. A started operation has no start in flight, so the lease is free to take.
  -- Who fetched the attempt has no address: it hears at its polls and heartbeats.
  local fetched = held(op)
  local told = op.state ~= S.started or op.suspended > 0 or fetched
  local sent = not told and owe_cancel(op, a.session, now, a.cancel_lease_ms)
  save(op)
  tell(op)
  if fetched then tell_holder(op) end
  return { 'requested', now, op.state, sent and work(op, 'cancel'), waiting_line(op) }
end
