-- pull: hand the first operations of a pull endpoint's waiting line to pollers.
-- Keys: partition root. Arguments: msgpack {endpoint, seats = {{instance, count, lease_ms}, ...}, services = {name, ...},
--   skip, bytes}. `services` empty: any; else only those, and the look begins behind the first `skip` of the line.
-- Reply: {now, works, instance of each, reason why it stopped or '', skip for the next look, 1: the line goes on behind it}
-- An operation goes to the instance that had its last attempt, if that has a seat here: a hint, no promise.
-- Flag allow-oom. A repeat after a lost reply takes more; what the lost one took comes back when its lease ends.

-- The service that `q` names: its second field. Not the whole of it is unpacked, for cmsgpack cannot read the binary
-- header values behind.
local function service_of(root, id)
  local packed = redis.call('HGET', root .. KEY.operation .. id, 'q')
  local _, _, service = cmsgpack.unpack_limit(packed, 2, string.byte(packed) == 0xdc and 3 or 1)
  return service
end

local function seat_for(op, seats, turn)
  if op.instance ~= '' then
    for _, seat in ipairs(seats) do
      if seat.count > 0 and seat.instance == op.instance then return seat, turn end
    end
  end
  for step = 1, #seats do
    local at = (turn + step - 1) % #seats + 1
    if seats[at].count > 0 then return seats[at], at end
  end
  return nil, turn
end

local function mesh1_pull(keys, argv)
  local root = keys[1]
  local a = given(argv[1], 'endpoint', 'seats', 'services', 'skip', 'bytes')
  local free = 0
  for _, seat in ipairs(a.seats) do
    local _ = #seat.instance + seat.lease_ms -- all of them, before the first write
    free = free + seat.count
  end
  local wanted = #a.services > 0 and {} or nil
  for _, service in ipairs(a.services) do wanted[service] = true end
  local now = now_ms()
  local works, instances, bytes, turn = {}, {}, 0, 0
  local ep = endpoint_of(root, a.endpoint)
  if not ep then return { now, works, instances, 'endpoint_deleted', 0, 0 } end
  if not ep.pull then return { now, works, instances, 'not_pull', 0, 0 } end
  if free < 1 then return { now, works, instances, '', a.skip, 0 } end
  local line = root .. KEY.waiting .. a.endpoint
  local look = wanted and LIMIT.pull_look or math.min(free, LIMIT.pull_look)
  local ids = redis.call('ZRANGE', line, a.skip, a.skip + look - 1)
  local passed = 0
  for _, id in ipairs(ids) do
    local op = load_listed(root, line, id)
    if op and op.blocked == '' then
      redis.call('ZREM', line, id)
    elseif op and wanted and not wanted[service_of(root, id)] then
      passed = passed + 1
    elseif op then
      local reason = hindrance(ep, now, true)
      if reason ~= '' then
        if op.blocked ~= reason then
          op.blocked = reason
          emit(op, E.blocked, now, reason)
          save(op)
          tell(op)
        end
        return { now, works, instances, reason, 0, 0 }
      end
      if op.attempts_max > 0 and spent(op) >= op.attempts_max then
        -- Left to the timer, which ends it: attempts are exhausted.
        op.blocked, op.start_at = '', now
        save(op)
      else
        local seat
        seat, turn = seat_for(op, a.seats, turn)
        if not seat then return { now, works, instances, '', a.skip + passed, 1 } end
        seat.count = seat.count - 1
        hand_out(op, ep, seat.instance, seat.lease_ms, now)
        save(op)
        tell(op)
        local item = work(op, 'start')
        bytes = bytes + #item[4] + #item[5]
        works[#works + 1] = item
        instances[#instances + 1] = seat.instance
        if bytes >= a.bytes then return { now, works, instances, '', a.skip + passed, 1 } end
      end
    end
  end
  return { now, works, instances, '', a.skip + passed, #ids == look and 1 or 0 }
end
