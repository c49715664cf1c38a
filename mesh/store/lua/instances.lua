-- instance_put / instance_drain: leases of instances. Stored: msgpack {document, expires_at, since, draining, arrivals,
-- checks, contract}; draining 0 no, 1 it left by itself, 2 it was told to; arrivals: times, newest last; checks: see checks.lua, 0 none.
-- contract: the version of the endpoint at which its contract had changed last when this process registered, 0 unknown.
-- Documents are opaque here, and equal bytes are equal registrations.

-- The endpoint of `name` where `ns` may change its instances, or nil and the refusal.
local function own_endpoint(root, name, ns)
  local id, facts = named(root, name)
  if not id or facts.gone or facts.owner ~= ns then return nil, refuse('NO_ENDPOINT', name) end
  return id
end

-- instance_put: register and heartbeat in one. Arguments: msgpack {name, ns, instance, ttl_ms, fresh}, document (JSON).
--   `fresh` 1: a process that has just started, whatever is known under its name.
-- Reply: {'created' | 'renewed', now, expires_at}. Refuses: NO_ENDPOINT, TOO_MANY_INSTANCES.
-- Only a change that routing must see moves the registry version. What was told to drain goes on draining until somebody
--   says otherwise, or it is another process.
local function mesh1_instance_put(keys, argv)
  local root = keys[1]
  local a = given(argv[1], 'name', 'ns', 'instance', 'ttl_ms', 'fresh')
  local id, refused = own_endpoint(root, a.name, a.ns)
  if not id then return refused end
  local key, document = root .. KEY.instances .. id, assert(argv[2])
  local now = now_ms()
  local packed = redis.call('HGET', key, a.instance)
  local old = packed and cmsgpack.unpack(packed)
  if not old and redis.call('HLEN', key) >= LIMIT.instances then
    local all = redis.call('HGETALL', key)
    for position = 1, #all, 2 do
      if cmsgpack.unpack(all[position + 1])[2] < now then redis.call('HDEL', key, all[position]) end
    end
    if redis.call('HLEN', key) >= LIMIT.instances then return refuse('TOO_MANY_INSTANCES', tostring(LIMIT.instances)) end
  end
  local there = a.fresh == 0 and old and (old[2] >= now or lease_end(root, old[2], a.ttl_ms) >= now)
  local same = there and old[1] == document and old[4] ~= 1
  local arrivals = old and old[5] or {}
  if not there or old[4] == 1 then
    arrivals[#arrivals + 1] = now
    if #arrivals > LIMIT.comings then table.remove(arrivals, 1) end
  end
  local draining = a.fresh == 0 and old and old[4] == 2 and 2 or 0
  -- A lease that lapsed is no new process: it keeps the contract that it came with.
  local contract = a.fresh == 0 and old and old[1] == document and old[7]
    or tonumber(redis.call('HGET', root .. KEY.endpoint .. id, 'contract') or 0)
  redis.call('HSET', key, a.instance, cmsgpack.pack({
    document, now + a.ttl_ms, same and old[3] or now, draining, arrivals, same and old[6] or 0, contract,
  }))
  if not same then registry_moved(root) end
  return { old and 'renewed' or 'created', now, now + a.ttl_ms }
end

-- instance_drain: no new work from now on. Arguments: msgpack {name, ns, instance, draining}: 1 it leaves by itself, and is
--   gone from the list when its lease ends; 2 it is told to; 0 it serves again. Reply: {'set' | 'same', now}.
-- Refuses: NO_ENDPOINT, NO_INSTANCE, LEFT (it left by itself, so only it can come back).
local function mesh1_instance_drain(keys, argv)
  local root = keys[1]
  local a = given(argv[1], 'name', 'ns', 'instance', 'draining')
  local id, refused = own_endpoint(root, a.name, a.ns)
  if not id then return refused end
  local key, now = root .. KEY.instances .. id, now_ms()
  local packed = redis.call('HGET', key, a.instance)
  -- What is kept of the target of a registration is no lease.
  if not packed or cmsgpack.unpack(packed)[2] == 0 then return refuse('NO_INSTANCE', a.instance) end
  local old = cmsgpack.unpack(packed)
  if a.draining == 0 and old[4] == 1 then return refuse('LEFT', a.instance) end
  -- Told to, and then ending by itself: since when it drains does not change, but its next registration brings it back.
  local drains = old[4] ~= 0 and a.draining ~= 0
  if old[4] == a.draining or (drains and a.draining == 2) then return { 'same', now } end
  old[3], old[4] = drains and old[3] or now, a.draining
  redis.call('HSET', key, a.instance, cmsgpack.pack(old))
  registry_moved(root)
  return { 'set', now }
end
