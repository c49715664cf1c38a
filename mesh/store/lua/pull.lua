-- pull: hand operations of a pull endpoint's waiting line to pollers, in the order of turns (turns.lua).
-- Keys: partition root. Arguments: msgpack {endpoint, seats = {{instance, count, lease_ms, version}, ...},
--   services = {name, ...}, skip, bytes, pin}. `services` empty: any; else only those, and the look begins behind the first
--   `skip` of each namespace. `pin` not '': the line of what waits for that version (pins.lua), which all seats have.
-- Reply: {now, works, instance of each, reason why it stopped or '', skip for the next look, 1: the line goes on behind it}
-- An operation goes to the instance that had its last attempt, if that has a seat here: a hint, no promise.
-- Flag allow-oom. A repeat after a lost reply takes more; what the lost one took comes back when its lease ends.

-- The service that `q` names: the second field of its request. Not the whole of it is unpacked, for cmsgpack cannot read the
-- binary header values behind.
local function service_of(root, id)
  local packed = redis.call('HGET', root .. KEY.operation .. id, 'q')
  local at = cmsgpack.unpack_limit(packed, 2, 1)
  local _, _, service = cmsgpack.unpack_limit(packed, 2, at + (string.byte(packed, at + 1) == 0xdc and 3 or 1))
  return service
end

local function suits(seat, op)
  return seat.count > 0 and (op.pin == '' or op.pin == 'v' .. seat.version)
end

local function seat_for(op, seats, turn)
  if op.instance ~= '' then
    for _, seat in ipairs(seats) do
      if seat.instance == op.instance and suits(seat, op) then return seat, turn end
    end
  end
  for step = 1, #seats do
    local at = (turn + step - 1) % #seats + 1
    if suits(seats[at], op) then return seats[at], at end
  end
  return nil, turn
end

-- Pinned work that came into the endpoint's line for another reason (a limit, say) and finds none of its version here goes
-- and waits for that alone. The room that it was entitled to is left for it, or those who fetch more often would always
-- be there first.
local function set_apart(op, ep, now)
  show_reason(op, 'busy', now)
  call_pollers(op)
  ep.run = ep.run + 1
end

local function mesh1_pull(keys, argv)
  local root = keys[1]
  local a = given(argv[1], 'endpoint', 'seats', 'services', 'skip', 'bytes', 'pin')
  local free = 0
  for _, seat in ipairs(a.seats) do
    local _ = #seat.instance + seat.lease_ms + #seat.version -- all of them, before the first write
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
  ep.place = ep.id .. (a.pin ~= '' and '|' .. a.pin or '')
  unpark(ep, now)
  local look, stopped, more, went = wanted and LIMIT.pull_look or math.min(free, LIMIT.pull_look), '', 0, {}
  -- Of several namespaces each gets its part of the look, or what one of them does not want would hide the others'.
  local window = math.max(LIMIT.line_look, math.floor(look / math.max(1, redis.call('ZCARD', root .. KEY.turns .. ep.place))))
  local way = walk(ep, a.skip)
  while look > 0 do
    local namespace, id = walk_on(way, now)
    if not id then break end
    look = look - 1
    local op = load_waiting(ep, namespace, id)
    if op and wanted and not wanted[service_of(root, id)] then
      way.passed[namespace] = (way.passed[namespace] or 0) + 1
      if way.passed[namespace] >= window then way.done[namespace] = true end
    elseif op then
      local reason = hindrance(ep, now)
      if reason ~= '' then
        show_reason(op, reason, now)
        stopped = reason
        break
      end
      if op.attempts_max > 0 and spent(op) >= op.attempts_max then
        -- Left to the timer, which ends it: attempts are exhausted.
        op.blocked, op.start_at = '', now
        save(op)
      else
        local seat
        seat, turn = seat_for(op, a.seats, turn)
        if seat then
          seat.count, free = seat.count - 1, free - 1
          hand_out(op, ep, seat.instance, seat.lease_ms, seat.version ~= '', now)
          save(op)
          tell(op)
          local item = work(op, 'start')
          bytes = bytes + #item[4] + #item[5]
          works[#works + 1] = item
          instances[#instances + 1] = seat.instance
          went[namespace] = (went[namespace] or 0) + 1
          if bytes >= a.bytes then
            more = 1
            break
          end
        elseif free > 0 and op.pin ~= '' and a.pin == '' then
          set_apart(op, ep, now)
        else
          more = 1
          break
        end
      end
    end
  end
  if ep.shares then note_drain(ep, went, now) end
  if stopped ~= '' then return { now, works, instances, stopped, 0, 0 } end
  -- Goes on behind what all namespaces that have more were passed by.
  local least
  for _, namespace in ipairs(redis.call('ZRANGE', root .. KEY.turns .. ep.place, 0, -1)) do
    local passed = way.passed[namespace] or 0
    if redis.call('ZCARD', queue_of(root, ep.place, namespace)) > a.skip + passed then
      more, least = 1, math.min(least or passed, passed)
    end
  end
  return { now, works, instances, '', a.skip + (least or 0), more }
end
