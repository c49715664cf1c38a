-- unblock: lease the first operations of an endpoint's waiting line to a session that can reach the endpoint.
-- Keys: partition root. Arguments: msgpack {endpoint, session, count, bytes, reason, probe, pin}.
--   `probe` 1: lease the one that tells most about the endpoint, whatever `count` says (P116).
--   `pin` not '': the line of what waits for that version (pins.lua).
--   `reason` not '': the caller cannot send either; the first `count` entries only get their shown reason corrected.
-- Reply: {now, works, reason why it stopped or ''}. Refuses: NO_SESSION. Flag allow-oom.

-- The operation that failed least, the newest of several: one that fails for reasons of its own must not be the judge of
-- the endpoint again and again. A long line is sampled, so that what is old in it gets its turn too.
local function least_tried(root, line)
  local seen = redis.call('ZRANGE', line, 0, LIMIT.probe_look - 1, 'REV')
  if #seen == LIMIT.probe_look then
    for _, id in ipairs(redis.call('ZRANDMEMBER', line, LIMIT.probe_look)) do seen[#seen + 1] = id end
  end
  local best, fewest = nil, INF
  for _, id in ipairs(seen) do
    local op = load_listed(root, line, id)
    if op and op.blocked == '' then
      redis.call('ZREM', line, id)
    elseif op and op.attempt < fewest then
      best, fewest = id, op.attempt
    end
  end
  return { best }
end

local function mesh1_unblock(keys, argv)
  local root = keys[1]
  local a = given(argv[1], 'endpoint', 'session', 'count', 'bytes', 'reason', 'probe', 'pin')
  if not redis.call('ZSCORE', root .. KEY.sessions, a.session) then return refuse('NO_SESSION', a.session) end
  local now = now_ms()
  local works, bytes = {}, 0
  local ep = endpoint_of(root, a.endpoint)
  if not ep then return { now, works, 'endpoint_deleted' } end
  local line = root .. KEY.waiting .. a.endpoint .. (a.pin ~= '' and '|' .. a.pin or '')
  for _, id in ipairs(a.probe == 1 and least_tried(root, line) or redis.call('ZRANGE', line, 0, a.count - 1)) do
    local op = load_listed(root, line, id)
    if op and op.blocked == '' then
      redis.call('ZREM', line, id)
    elseif op then
      local reason = hindrance(ep, now, true)
      if reason == '' then reason = a.reason end
      if reason == '' and ep.pull then reason = 'busy' end -- taken by those who poll (pull.lua)
      if reason == '' and op.attempts_max > 0 and spent(op) >= op.attempts_max then
        -- Left to the timer, which ends it: attempts are exhausted.
        op.blocked, op.start_at = '', now
        save(op)
      elseif reason == '' then
        dispatch(op, ep, a.session, now)
        save(op)
        tell(op)
        local item = work(op, 'start')
        bytes = bytes + #item[4] + #item[5]
        works[#works + 1] = item
      elseif op.blocked ~= reason then
        op.blocked = reason
        emit(op, E.blocked, now, reason)
        save(op)
        tell(op)
      end
      if bytes >= a.bytes then return { now, works, 'bytes' } end
      if reason ~= '' and a.reason == '' then return { now, works, reason } end
    end
  end
  return { now, works, '' }
end
