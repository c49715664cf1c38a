-- start: accept an operation and take its first dispatch lease in one step.
-- Keys: partition root. Arguments: msgpack {id, ns, endpoint, key, digest, session, close_ms, start_ms, run_ms,
--   lease_ms, attempts_max, retention_ms, callback, blocked}, request, input
--   [, instance, lease ms: it polls at the caller's for this endpoint of kind pull and gets the attempt].
-- Reply: {'accepted', time of acceptance, attempt (1: leased to `session`, which sends it; 0: nothing to send), blocked
--     [, 1: the attempt is `instance`'s]}
--     or {'replayed', now, id, state}
-- Refuses: KEY_REUSED id, NO_ENDPOINT, NO_SESSION. Effects: record, key, index, timer, events accepted [+ dispatched].
-- The link sends a call again when its reply was lost, so the same id answers as the first time did, except that an
--   attempt which was taken from this session meanwhile, or has ended, is no longer its to send.
-- Admission: refused by the server itself when memory is full (no allow-oom flag).
local function mesh1_start(keys, argv)
  local root = keys[1]
  local a = cmsgpack.unpack(argv[1])
  local request, input, key, instance = argv[2], argv[3], a.key, argv[4]
  local now = now_ms()
  local op = {
    id = a.id, root = root, events = '', state = S.scheduled, run = 1, attempt = 0, seq = 0, stamp = 0, created_at = now,
    closed_at = 0, owner = '', start = D.due, start_at = now, cancel = D.none, cancel_at = 0, cancel_tries = 0,
    wants_callback = a.callback, callback = D.none, callback_at = 0, callback_tries = 0,
    close_by = a.close_ms > 0 and now + a.close_ms or 0, start_by = a.start_ms > 0 and now + a.start_ms or 0,
    run_ms = a.run_ms, finish_by = 0, beat_ms = 0, beat_by = 0, lease_ms = a.lease_ms,
    attempts_max = a.attempts_max, retention_ms = a.retention_ms, cancel_asked = 0, slot = 0, blocked = '',
    endpoint = a.endpoint, namespace = a.ns, key = key, digest = a.digest, instance = '', resumes = 0, was_blocked = '',
  }
  -- A missing argument fails here, before the key is claimed below (see `given`).
  local _ = #request + #input + a.callback + a.run_ms + a.lease_ms + a.attempts_max + a.retention_ms
    + #a.id + #a.ns + #a.endpoint + #a.session + #a.digest + #a.blocked
  local poll_lease_ms = instance and assert(tonumber(argv[5]))

  local ep = endpoint_of(root, a.endpoint)
  local hindered = not ep or ep.gone or not listed(root, a.session)
  -- One call claims the key or finds who has it; a start that is refused below must not claim it.
  local known
  if key == '' then
    known = a.id
  elseif hindered then
    known = redis.call('GET', root .. KEY.idempotency .. key)
  else
    known = redis.call('SET', root .. KEY.idempotency .. key, a.id, 'NX', 'GET')
  end
  local earlier = known and load(root, known)
  if earlier then
    if known == a.id then
      local fetched = instance and earlier.instance == instance and held(earlier)
      local mine = earlier.attempt == 1 and (fetched or (earlier.start == D.leased and earlier.owner == a.session))
      return { 'accepted', earlier.created_at, mine and 1 or 0, earlier.blocked, fetched and 1 or nil }
    end
    if earlier.digest ~= a.digest then return refuse('KEY_REUSED', known) end
    -- The repeat may be answered 201, here or by another gateway: from now on the callback is owed whatever the first
    -- request is answered.
    if earlier.state < S.succeeded and earlier.wants_callback == 1 then
      earlier.wants_callback = 2
      save(earlier)
    end
    return { 'replayed', now, known, earlier.state }
  end
  if not ep or ep.gone then return refuse('NO_ENDPOINT', a.endpoint) end
  if hindered then return refuse('NO_SESSION', a.session) end
  if known and key ~= '' then redis.call('SET', root .. KEY.idempotency .. key, a.id) end

  emit(op, E.accepted, now)
  local reason = hindrance(ep, now, false)
  if reason == '' then reason = a.blocked end
  if reason == '' and ep.pull then
    if instance then hand_out(op, ep, instance, poll_lease_ms, now) else reason = 'busy' end
  elseif reason == '' then
    dispatch(op, ep, a.session, now)
  end
  if reason ~= '' then
    op.blocked = reason
    emit(op, E.blocked, now, reason)
    if ep.pull then call_pollers(root, ep.id) end
  end
  redis.call('ZADD', root .. KEY.index .. a.ns, now, a.id)
  if input ~= '' then
    save(op, 'q', request, 'i', input)
  else
    save(op, 'q', request)
  end
  return { 'accepted', now, op.attempt, op.blocked, op.instance ~= '' and 1 or nil }
end
