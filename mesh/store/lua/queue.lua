-- queue: who waits and runs at endpoints, by namespace, at one moment.
-- Keys: partition root. Arguments: msgpack {endpoints = {id, ...}}.
-- Reply: {now, {waiting, could begin first (ms, 0: nothing waits), running, {namespace, waiting, could begin next in its turn,
--   running, 1: all that wait are at its own limit, ...}}, ...}. Writes nothing. Running: what was
--   dispatched while the endpoint had limits (take_slot in line.lua).

local function count_place(root, id, place, of)
  for number, kind in ipairs({ KEY.turns, KEY.parked }) do
    for _, namespace in ipairs(redis.call('ZRANGE', root .. kind .. place, 0, -1)) do
      local key = queue_of(root, place, namespace)
      local one = of[namespace] or { namespace, 0, 0, 0, 1 }
      of[namespace] = one
      one[2] = one[2] + redis.call('ZCARD', key)
      local head = redis.call('ZRANGE', key, 0, 0)[1]
      local since = head and redis.call('ZSCORE', root .. KEY.waiting .. place, head)
      if since and (one[3] == 0 or tonumber(since) < one[3]) then one[3] = tonumber(since) end
      if number == 1 then one[5] = 0 end
    end
  end
  local first = redis.call('ZRANGE', root .. KEY.waiting .. place, 0, 0, 'WITHSCORES')
  return redis.call('ZCARD', root .. KEY.waiting .. place), tonumber(first[2] or '0')
end

local function mesh1_queue(keys, argv)
  local root = keys[1]
  local reply = { now_ms() }
  for position, id in ipairs(given(argv[1], 'endpoints').endpoints) do
    local of, running = {}, 0
    local facts = redis.call('HGETALL', root .. KEY.endpoint .. id)
    for at = 1, #facts, 2 do
      local namespace = string.match(facts[at], '^run:(.+)$')
      if namespace and tonumber(facts[at + 1]) > 0 then of[namespace] = { namespace, 0, 0, tonumber(facts[at + 1]), 0 } end
      if facts[at] == 'run' then running = tonumber(facts[at + 1]) end
    end
    local waiting, oldest = count_place(root, id, id, of)
    for _, pin in ipairs(redis.call('SMEMBERS', root .. KEY.pins .. id)) do
      local more, first = count_place(root, id, id .. '|' .. pin, of)
      waiting = waiting + more
      if first > 0 and (oldest == 0 or first < oldest) then oldest = first end
    end
    local rows = {}
    for _, one in pairs(of) do
      for _, value in ipairs(one) do rows[#rows + 1] = value end
    end
    reply[position + 1] = { waiting, oldest, running, rows }
  end
  return reply
end
