-- endpoint_put / endpoint_delete / endpoint_pause / version_set / callers_seen: what can be called.
-- Facts that dispatching and guards need lie in the hash `endpoint`; the document itself is opaque here.

local function registry_moved(root)
  local version = redis.call('INCR', root .. KEY.registry_version)
  redis.call('PUBLISH', root .. CHANNEL.registry, version)
end

-- The endpoint of `name` if it is alive: id, facts {owner, version, gone}; else nil and the id of its tombstone, if any.
local function named(root, name)
  local id = redis.call('HGET', root .. KEY.names, name)
  if not id then return nil, nil end
  local f = redis.call('HMGET', root .. KEY.endpoint .. id, 'owner', 'version', 'gone')
  local facts = { owner = f[1], version = tonumber(f[2]), gone = f[3] == '1' }
  return id, facts
end

-- endpoint_put: create or replace. Arguments: msgpack {name, ns, id, if_match, max, rate, pull, retry, limits}, document (JSON),
-- what changes in the contract (JSON, '' nothing), kept as msgpack {version, now, change}.
-- `limits`: namespace or '*', then its `rate concurrency weight cap later`, 0 for none; and so on.
-- `if_match`: '' none, '*' must exist, 'new' must not, else the version. Reply: {'created' | 'replaced' | 'same', now, id, version}.
-- Refuses: NAME_TAKEN, STALE_VERSION. A deleted endpoint comes back to its owner under its old id, with its waiting work.
local function mesh1_endpoint_put(keys, argv)
  local root = keys[1]
  local a = given(argv[1], 'name', 'ns', 'id', 'if_match', 'max', 'rate', 'pull', 'retry', 'limits')
  local id, facts = named(root, a.name)
  local alive = id and not facts.gone
  local document = assert(argv[2])
  if alive and facts.owner ~= a.ns then return refuse('NAME_TAKEN', a.name) end
  local now = now_ms()
  -- Before the version is compared: a call that is sent again must not be refused for what it did itself (RFC 9110 13.1.1).
  if alive and redis.call('HGET', root .. KEY.catalog, id) == document then return { 'same', now, id, facts.version } end
  if a.if_match == 'new' then
    if alive then return refuse('STALE_VERSION', tostring(facts.version)) end
  elseif a.if_match ~= '' then
    if not alive then return refuse('STALE_VERSION', '0') end
    if a.if_match ~= '*' and tonumber(a.if_match) ~= facts.version then
      return refuse('STALE_VERSION', tostring(facts.version))
    end
  end
  if not id or (facts.gone and facts.owner ~= a.ns) then
    id = a.id
    facts = { version = 0 }
    redis.call('HSET', root .. KEY.endpoint .. id, 'run', 0, 'tat', 0, 'created_at', now)
  end
  -- A pause and what was said of versions belong to the registration that was deleted, not to the new one.
  if not alive then redis.call('HSET', root .. KEY.endpoint .. id, 'paused', '0', 'versions', '') end
  local version = facts.version + 1
  redis.call('HSET', root .. KEY.names, a.name, id)
  redis.call('HSET', root .. KEY.catalog, id, document)
  redis.call('HSET', root .. KEY.endpoint .. id, 'gone', '0', 'owner', a.ns, 'name', a.name, 'version', version,
    'max', a.max, 'rate', a.rate, 'pull', a.pull, 'retry', a.retry, 'shares', #a.limits > 0 and '1' or '0', 'updated_at', now)
  for _, field in ipairs(redis.call('HKEYS', root .. KEY.endpoint .. id)) do
    if string.sub(field, 1, 3) == 'of:' then redis.call('HDEL', root .. KEY.endpoint .. id, field) end
  end
  for at = 1, #a.limits, 2 do
    redis.call('HSET', root .. KEY.endpoint .. id, 'of:' .. a.limits[at], a.limits[at + 1])
  end
  limits_set(root, id, now)
  local change = argv[3]
  -- Instances are behind that registered before (instances.lua).
  if not alive or (change or '') ~= '' then redis.call('HSET', root .. KEY.endpoint .. id, 'contract', version) end
  redis.call('HDEL', root .. KEY.endpoint .. id, 'last')
  if change and change ~= '' then
    redis.call('LPUSH', root .. KEY.contract .. id, cmsgpack.pack({ version, now, change }))
    redis.call('LTRIM', root .. KEY.contract .. id, 0, LIMIT.contract_changes - 1)
  end
  registry_moved(root)
  return { alive and 'replaced' or 'created', now, id, version }
end

-- endpoint_delete: leave a tombstone, so that waiting work is shown as blocked and survives a new registration.
-- Arguments: msgpack {name, ns, if_match, kept_ms}. Reply: {'deleted', now, id}. Refuses: NO_ENDPOINT, STALE_VERSION.
--   The tombstone stays for `kept_ms`, and as long as work of it waits or counts (forget_endpoints in sessions.lua).
local function mesh1_endpoint_delete(keys, argv)
  local root = keys[1]
  local a = given(argv[1], 'name', 'ns', 'if_match', 'kept_ms')
  local id, facts = named(root, a.name)
  if not id or facts.gone or facts.owner ~= a.ns then return refuse('NO_ENDPOINT', a.name) end
  if a.if_match ~= '' and a.if_match ~= '*' and tonumber(a.if_match) ~= facts.version then
    return refuse('STALE_VERSION', tostring(facts.version))
  end
  -- What it was, for whoever registers under the name again: its callers are still there.
  local last = redis.call('HGET', root .. KEY.catalog, id)
  redis.call('HSET', root .. KEY.endpoint .. id, 'gone', '1', 'version', facts.version + 1, 'last', last or '')
  redis.call('DEL', root .. KEY.instances .. id)
  redis.call('HDEL', root .. KEY.catalog, id)
  local now = now_ms()
  redis.call('ZADD', root .. KEY.gone, now + a.kept_ms, id)
  registry_moved(root)
  return { 'deleted', now, id }
end

-- endpoint_pause: pause (1) or resume (0). Arguments: msgpack {name, ns, paused}. Reply: {'paused' | 'resumed', now, id}.
local function mesh1_endpoint_pause(keys, argv)
  local root = keys[1]
  local a = given(argv[1], 'name', 'ns', 'paused')
  local id, facts = named(root, a.name)
  if not id or facts.gone or facts.owner ~= a.ns then return refuse('NO_ENDPOINT', a.name) end
  redis.call('HSET', root .. KEY.endpoint .. id, 'paused', tostring(a.paused))
  registry_moved(root)
  return { a.paused == 1 and 'paused' or 'resumed', now_ms(), id }
end

-- version_set: how one version of an endpoint shares in the work. Arguments: msgpack {name, ns, version [, weight, percent,
--   draining]}: what is left out stays, -1 (draining 0) is the default. Kept in `versions` of the endpoint: msgpack
--   {version = {weight, percent, draining since or 0}}. Reply: {'set' | 'same', now}. Refuses: NO_ENDPOINT, TOO_MANY_VERSIONS.
local function mesh1_version_set(keys, argv)
  local root = keys[1]
  local a = given(argv[1], 'name', 'ns', 'version')
  local id, facts = named(root, a.name)
  if not id or facts.gone or facts.owner ~= a.ns then return refuse('NO_ENDPOINT', a.name) end
  local now = now_ms()
  local packed = redis.call('HGET', root .. KEY.endpoint .. id, 'versions') or ''
  local versions = packed ~= '' and cmsgpack.unpack(packed) or {}
  local old = versions[a.version] or { -1, -1, 0 }
  local fresh = { a.weight or old[1], a.percent or old[2], old[3] }
  if a.draining == 0 then fresh[3] = 0 elseif a.draining == 1 and old[3] == 0 then fresh[3] = now end
  if fresh[1] == old[1] and fresh[2] == old[2] and fresh[3] == old[3] then return { 'same', now } end
  local plain = fresh[1] == -1 and fresh[2] == -1 and fresh[3] == 0
  versions[a.version] = not plain and fresh or nil
  local count = 0
  for _ in pairs(versions) do count = count + 1 end
  if count > LIMIT.versions then return refuse('TOO_MANY_VERSIONS', tostring(LIMIT.versions)) end
  redis.call('HSET', root .. KEY.endpoint .. id, 'versions', count > 0 and cmsgpack.pack(versions) or '')
  registry_moved(root)
  return { 'set', now }
end

-- callers_seen: who called which operation of an endpoint lately. Arguments: msgpack {id, seen, kept_ms}; `seen`: the
-- fields of the hash. Reply: {'noted', now}. What was seen longer than `kept_ms` ago goes when room is needed.
local function mesh1_callers_seen(keys, argv)
  local root = keys[1]
  local a = given(argv[1], 'id', 'seen', 'kept_ms')
  local key, now = root .. KEY.callers .. a.id, now_ms()
  if redis.call('EXISTS', root .. KEY.endpoint .. a.id) == 0 then return { 'noted', now } end
  if redis.call('HLEN', key) + #a.seen > LIMIT.callers then
    local all = redis.call('HGETALL', key)
    for position = 1, #all, 2 do
      if tonumber(all[position + 1]) < now - a.kept_ms then redis.call('HDEL', key, all[position]) end
    end
  end
  for _, one in ipairs(a.seen) do
    if redis.call('HLEN', key) < LIMIT.callers or redis.call('HEXISTS', key, one) == 1 then
      redis.call('HSET', key, one, now)
    end
  end
  redis.call('PEXPIRE', key, a.kept_ms)
  return { 'noted', now }
end
