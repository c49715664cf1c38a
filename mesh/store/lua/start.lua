-- start: accept an operation and take its first dispatch lease in one step.
-- Keys: partition root. Arguments: msgpack {id, ns, endpoint, key, digest, session, close_ms, start_ms, run_ms,
--   beat_ms, lease_ms, attempts_max, retention_ms, callback, blocked}, request, input.
-- Reply: {'accepted', now, attempt (0 when it waits), blocked}
--     or {'replayed', now, id, state}
-- Refuses: KEY_REUSED id, NO_ENDPOINT, NO_SESSION. Effects: record, key, index, timer, events accepted [+ dispatched].
-- The link sends a call again when its reply was lost, so the same id answers as the first time did.
-- Admission: refused by the server itself when memory is full (no allow-oom flag).
local function mesh1_start(keys, argv)
  local root = keys[1]
  local a = cmsgpack.unpack(argv[1])
  local ep = endpoint_of(root, a.endpoint)
  local hindered = not ep or ep.gone or not redis.call('ZSCORE', root .. KEY.sessions, a.session)
  local key = a.key
  -- One call claims the key or finds who has it; a start that is refused below must not claim it.
  local known
  if key == '' then
    known = redis.call('EXISTS', root .. KEY.operation .. a.id) == 1 and a.id
  elseif hindered then
    known = redis.call('GET', root .. KEY.idempotency .. key)
  else
    known = redis.call('SET', root .. KEY.idempotency .. key, a.id, 'NX', 'GET')
  end
  local op = known and load(root, known)
  if op then
    if known == a.id then return { 'accepted', now_ms(), op.attempt, op.blocked } end
    if op.digest ~= a.digest then return refuse('KEY_REUSED', known) end
    return { 'replayed', now_ms(), known, op.state }
  end
  if not ep or ep.gone then return refuse('NO_ENDPOINT', a.endpoint) end
  if hindered then return refuse('NO_SESSION', a.session) end
  if known then redis.call('SET', root .. KEY.idempotency .. key, a.id) end

  local now = now_ms()
  op = {
    id = a.id, root = root, events = '', state = S.scheduled, run = 1, attempt = 0, seq = 0, stamp = 0, created_at = now,
    closed_at = 0, owner = '', start = D.due, start_at = now, cancel = D.none, cancel_at = 0, cancel_tries = 0,
    wants_callback = a.callback, callback = D.none, callback_at = 0, callback_tries = 0,
    close_by = a.close_ms > 0 and now + a.close_ms or 0, start_by = a.start_ms > 0 and now + a.start_ms or 0,
    run_ms = a.run_ms, finish_by = 0, beat_ms = 0, beat_by = 0, lease_ms = a.lease_ms,
    attempts_max = a.attempts_max, retention_ms = a.retention_ms, cancel_asked = 0, slot = 0, blocked = '',
    endpoint = a.endpoint, namespace = a.ns, key = key, digest = a.digest, was_blocked = '',
  }
  emit(op, E.accepted, now)
  local reason = hindrance(ep, now, false)
  if reason == '' then reason = a.blocked end
  if reason == '' then
    dispatch(op, ep, a.session, now)
  else
    op.blocked = reason
    emit(op, E.blocked, now, reason)
  end
  redis.call('ZADD', root .. KEY.index .. a.ns, now, a.id)
  if argv[3] ~= '' then
    save(op, 'q', argv[2], 'i', argv[3])
  else
    save(op, 'q', argv[2])
  end
  return { 'accepted', now, op.attempt, op.blocked }
end
