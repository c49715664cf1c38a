-- Outages: times in which no gateway beat, so that no lease could be renewed. Who was alive when one began gets its whole
-- ttl anew when it is over; the beats tell of them, whoever reads a lease counts them in.

-- Every beat says that gateways and store are here. Another one after a long silence ends an outage.
local function note_pulse(root, now)
  local last = tonumber(redis.call('GET', root .. KEY.pulse) or now)
  if now - last > LIMIT.outage_ms then
    local packed = redis.call('GET', root .. KEY.outages)
    local outages = packed and cmsgpack.unpack(packed) or {}
    outages[#outages + 1] = { last, now }
    if #outages > LIMIT.outages then table.remove(outages, 1) end
    redis.call('SET', root .. KEY.outages, cmsgpack.pack(outages))
  end
  redis.call('SET', root .. KEY.pulse, now)
end

-- When a lease that was written to end at `at` does end, as registry/instances.py reckons too.
local function lease_end(root, at, ttl_ms)
  local packed = redis.call('GET', root .. KEY.outages)
  for _, outage in ipairs(packed and cmsgpack.unpack(packed) or {}) do
    if at >= outage[1] then at = math.max(at, outage[2] + ttl_ms) end
  end
  return at
end
