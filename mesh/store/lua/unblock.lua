-- unblock: lease operations of an endpoint's waiting line, in the order of turns (turns.lua), to a session that can reach it.
-- Keys: partition root. Arguments: msgpack {endpoint, session, count, bytes, reason, probe, pin}.
--   `probe` 1: lease the one that tells most about the endpoint, whatever `count` says (P116).
--   `pin` not '': the line of what waits for that version (pins.lua).
--   `reason` not '': the caller cannot send either; the first `count` entries only get their shown reason corrected.
-- Reply: {now, works, reason why it stopped or ''}. Refuses: NO_SESSION. Flag allow-oom.

-- The operation that failed least, the newest of several: one that fails for reasons of its own must not be the judge of
-- the endpoint again and again. A long line is sampled, so that what is old in it gets its turn too.
local function least_tried(ep, now)
  local line = ep.root .. KEY.waiting .. ep.place
  local seen = redis.call('ZRANGE', line, 0, LIMIT.probe_look - 1, 'REV')
  if #seen == LIMIT.probe_look then
    for _, id in ipairs(redis.call('ZRANDMEMBER', line, LIMIT.probe_look)) do seen[#seen + 1] = id end
  end
  local namespace, best, fewest = nil, nil, INF
  for _, id in ipairs(seen) do
    local op = load_listed(ep.root, line, id)
    if op and op.blocked == '' then
      redis.call('ZREM', line, id)
    elseif op and op.attempt < fewest and own_limit(ep, op.namespace, now) == '' then
      namespace, best, fewest = op.namespace, id, op.attempt
    end
  end
  return namespace, best
end

-- The first in line get the reason corrected; who waits at its namespace's own limit keeps that. What nobody of its version
-- could take waits for that, whatever the limits: in the endpoint's line it would only be in the way.
local function correct(ep, why, count, now)
  local line = ep.root .. KEY.waiting .. ep.place
  local apart = ep.place ~= ep.id and (why == 'no_version' or why == 'busy')
  for _, id in ipairs(redis.call('ZRANGE', line, 0, count - 1)) do
    local op = load_listed(ep.root, line, id)
    if op and op.blocked == '' then
      redis.call('ZREM', line, id)
    elseif op then
      local reason = apart and '' or hindrance(ep, now)
      if reason == '' and not apart then reason = own_limit(ep, op.namespace, now) end
      show_reason(op, reason ~= '' and reason or why, now)
    end
  end
end

local function mesh1_unblock(keys, argv)
  local root = keys[1]
  local a = given(argv[1], 'endpoint', 'session', 'count', 'bytes', 'reason', 'probe', 'pin')
  if not redis.call('ZSCORE', root .. KEY.sessions, a.session) then return refuse('NO_SESSION', a.session) end
  local now = now_ms()
  local works, bytes, went = {}, 0, {}
  local ep = endpoint_of(root, a.endpoint)
  if not ep then return { now, works, 'endpoint_deleted' } end
  ep.place = a.endpoint .. (a.pin ~= '' and '|' .. a.pin or '')
  if a.reason ~= '' then
    correct(ep, a.reason, a.count, now)
    return { now, works, '' }
  end
  unpark(ep, now)
  local stopped, way = '', walk(ep, 0)
  for _ = 1, a.probe == 1 and 1 or a.count do
    local namespace, id
    if a.probe == 1 then namespace, id = least_tried(ep, now) else namespace, id = walk_on(way, now) end
    if not id then break end
    local op, reason = load_waiting(ep, namespace, id), hindrance(ep, now)
    if reason == '' and ep.pull then reason = 'busy' end -- taken by those who poll (pull.lua)
    if op and reason ~= '' then
      show_reason(op, reason, now)
      stopped = reason
      break
    elseif op and op.attempts_max > 0 and spent(op) >= op.attempts_max then
      -- Left to the timer, which ends it: attempts are exhausted.
      op.blocked, op.start_at = '', now
      save(op)
    elseif op then
      dispatch(op, ep, a.session, now)
      save(op)
      tell(op)
      local item = work(op, 'start')
      bytes = bytes + #item[4] + #item[5]
      works[#works + 1] = item
      went[namespace] = (went[namespace] or 0) + 1
      if bytes >= a.bytes then
        stopped = 'bytes'
        break
      end
    end
  end
  if ep.shares then note_drain(ep, went, now) end
  return { now, works, stopped }
end
