-- checks_claim / check_done: probes and canaries of instances, so that of many gateways one runs each that is due.
-- What is known of a check is kept with its instance: checks = {kind = {failing (1) or not (0), results in a row that say
-- the opposite, since, at, why}}. Knows no policy: how often and after how many is said with every call.

-- checks_claim: Arguments: msgpack {wanted = {{endpoint id, instance, kind, every_ms}, ...}}.
-- Reply: {now, ms to wait, ...} in the order of `wanted`: 0, the caller runs it now; else how long nobody need ask again.
local function mesh1_checks_claim(keys, argv)
  local root = keys[1]
  local a = given(argv[1], 'wanted')
  local key, now = root .. KEY.checks, now_ms()
  local reply = { now }
  redis.call('ZREMRANGEBYSCORE', key, '-inf', now - LIMIT.checks_idle_ms)
  for position, one in ipairs(a.wanted) do
    local name = one[1] .. '|' .. one[2] .. '|' .. one[3]
    local due = tonumber(redis.call('ZSCORE', key, name) or '0')
    if due <= now or due > now + one[4] then
      redis.call('ZADD', key, now + one[4], name)
      due = now
    end
    reply[position + 1] = due - now
  end
  return reply
end

-- check_done: Arguments: msgpack {endpoint, instance, since, kind, ok, why, failures, successes, static}. `since`: of the
--   registration that was checked; `static` 1: the target of an endpoint's registration, which has no lease and no row but this;
--   `failures` and `successes` in a row that change the verdict.
-- Reply: {'noted' | 'changed' | 'gone', now}: 'gone', another process or registration is there by now.
local function mesh1_check_done(keys, argv)
  local root = keys[1]
  local a = given(argv[1], 'endpoint', 'instance', 'since', 'kind', 'ok', 'why', 'failures', 'successes', 'static')
  local key, now = root .. KEY.instances .. a.endpoint, now_ms()
  local packed = redis.call('HGET', key, a.instance)
  local row = packed and cmsgpack.unpack(packed)
  if redis.call('HGET', root .. KEY.endpoint .. a.endpoint, 'gone') ~= '0' then return { 'gone', now } end
  if a.static == 1 and not (row and row[3] == a.since) then row = { '{}', 0, a.since, 0, {}, 0 } end
  if not row or row[3] ~= a.since then return { 'gone', now } end
  local checks = type(row[6]) == 'table' and row[6] or {}
  local one = checks[a.kind] or { 0, 0, now, now, '' }
  local failing = one[1] == 1
  local changed = false
  one[4] = now
  if (a.ok == 1) ~= failing then
    one[2] = 0
    if failing then one[5] = a.why end
  else
    one[2] = one[2] + 1
    if one[2] >= (failing and a.successes or a.failures) then
      changed = true
      one = { failing and 0 or 1, 0, now, now, failing and '' or a.why }
    end
  end
  checks[a.kind] = one
  row[6] = checks
  redis.call('HSET', key, a.instance, cmsgpack.pack(row))
  if changed then registry_moved(root) end
  return { changed and 'changed' or 'noted', now }
end
