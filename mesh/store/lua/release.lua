-- release: the attempt surely did not reach an agent; give the attempt number and the slot back and wait in line.
-- Keys: partition root. Arguments: msgpack {id, run, attempt, session, reason}; with `fetched` 1 an attempt that was handed
--   out: its number stays used, for somebody may have its token, but counts against nothing.
-- Reply: {'waiting', now, endpoint with a waiting line or ''} or {'canceled', now} or {'same', now, state}; with `fetched`
--   also 'lost' or 'ended'.
-- Refuses: UNKNOWN. Flag allow-oom. Effects: event blocked, once per reason in a row, or released.
local function give_back(op, a, now)
  local word = standing(op, a.run, a.attempt)
  if word == 'lost' and a.run == op.run and a.attempt == op.attempt then word = 'same' end
  if word ~= 'ok' then return { word, now, op.state } end
  if op.cancel_asked == 1 and op.journal == 0 then
    apply(op, 'cancel')
    settle(op, now, E.canceled)
    save(op, 'r', cmsgpack.pack({ 'mesh', 'canceled_before_start' }))
    tell(op)
    return { 'canceled', now }
  end
  take_back(op, 'lose', now)
  op.resumes = op.resumes + 1
  emit(op, E.released, now, a.reason)
  local ep = endpoint_of(op.root, op.endpoint)
  -- Into the line at once, for whoever polls; an endpoint that is pushed to has the timer see to it.
  if ep and ep.pull then
    op.blocked = 'busy'
    call_pollers(op)
  end
  save(op)
  tell(op)
  return { 'waiting', now, waiting_line(op) }
end

local function mesh1_release(keys, argv, gather)
  local root = keys[1]
  local a = given(argv[1], 'id', 'run', 'attempt', 'reason')
  local op = load(root, a.id)
  if not op then return refuse('UNKNOWN', a.id) end
  local now = gather and gather.now or now_ms()
  op.gather = gather
  if a.fetched == 1 then return give_back(op, a, now) end
  -- The number is used again, so it does not tell a repeated release from one of the next holder; the session does.
  local others = (a.session or '') ~= '' and a.session ~= op.owner
  if a.run ~= op.run or a.attempt ~= op.attempt or op.state ~= S.scheduled or op.start ~= D.leased or others then
    return { 'same', now, op.state }
  end
  if op.cancel_asked == 1 and op.journal == 0 then
    apply(op, 'cancel')
    settle(op, now, E.canceled)
    save(op, 'r', cmsgpack.pack({ 'mesh', 'canceled_before_start' }))
    tell(op)
    return { 'canceled', now }
  end
  apply(op, 'block')
  apply_delivery(op, 'start', 'defer')
  op.start_at = now
  -- Of durable work no number is used twice: the one before may be of an attempt that suspended, whose 201 is still to
  -- be booked.
  if op.journal == 1 then op.resumes = op.resumes + 1 else op.attempt = op.attempt - 1 end
  -- Of an endpoint that is forgotten the timer sees to it.
  op.blocked = endpoint_of(root, op.endpoint) and a.reason or ''
  free_slot(op)
  emit(op, E.blocked, now, a.reason)
  save(op)
  tell(op)
  return { 'waiting', now, '' }
end
