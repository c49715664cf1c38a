-- Whose turn it is: what unblock and pull take from the line at `ep.place`, and how fast that drains.

-- These take turns with each other all the time; which of them it was at a moment is not worth an event each time.
local LIMITED = { concurrency = true, rate = true, namespace_concurrency = true, namespace_rate = true }

-- Corrects why an operation in line waits. Returns whether there was something to correct.
local function show_reason(op, reason, now)
  if op.blocked == reason or (LIMITED[op.blocked] and LIMITED[reason]) then return false end
  op.blocked = reason
  emit(op, E.blocked, now, reason)
  save(op)
  tell(op)
  return true
end

-- The operation, or nil after taking out of the line what does not wait (any more), or cannot be read.
local function load_waiting(ep, namespace, id)
  local op = load_listed(ep.root, ep.root .. KEY.waiting .. ep.place, id)
  if op and op.blocked ~= '' then return op end
  leave_line(ep.root, ep.place, namespace, id, 0)
  return nil
end

-- The namespace waits at its own limit until one of its attempts ends, or `at`.
local function park(ep, namespace, reason, now)
  local share = share_of(ep, namespace)
  local at = reason == 'namespace_rate' and math.ceil(share.tat) - LIMIT.rate_ahead_ms or now + LIMIT.parked_ms
  leave_turns(ep.root, ep.place, namespace, 0)
  redis.call('ZADD', ep.root .. KEY.parked .. ep.place, at, namespace)
  local id = redis.call('ZRANGE', queue_of(ep.root, ep.place, namespace), 0, 0)[1]
  local op = id and load_waiting(ep, namespace, id)
  if op then show_reason(op, reason, now) end
end

local function unpark(ep, now)
  if not ep.shares and redis.call('EXISTS', ep.root .. KEY.parked .. ep.place) == 0 then return end
  local parked = ep.root .. KEY.parked .. ep.place
  for _, namespace in ipairs(redis.call('ZRANGE', parked, '-inf', now, 'BYSCORE', 'LIMIT', 0, LIMIT.unparked)) do
    redis.call('ZREM', parked, namespace)
    enter_turns(ep.root, ep.place, namespace)
  end
end

-- The namespace whose turn it is, of those that `done` does not name; those at their own limits are parked on the way.
local function next_turn(ep, now, done)
  local turns = ep.root .. KEY.turns .. ep.place
  while true do
    local chosen
    for _, namespace in ipairs(redis.call('ZRANGE', turns, 0, next(done) and -1 or 0)) do
      if not done[namespace] then
        chosen = namespace
        break
      end
    end
    if not chosen then return nil end
    local reason = own_limit(ep, chosen, now)
    if reason == '' then return chosen end
    park(ep, chosen, reason, now)
  end
end

-- The operations of the line in the order of turns, read in pieces, from behind the first `skip` of each namespace.
-- `passed[namespace]`: how many were looked at and left where they are; `done[namespace]`: it is not looked at any more.
local function walk(ep, skip)
  return { ep = ep, skip = skip, ahead = {}, passed = {}, done = {} }
end

-- Namespace and id of whose turn it is, or nil when there is none.
local function walk_on(way, now)
  while true do
    local namespace = next_turn(way.ep, now, way.done)
    if not namespace then return nil end
    local ahead = way.ahead[namespace]
    if not ahead or #ahead == 0 then
      local from = way.skip + (way.passed[namespace] or 0)
      local ids = redis.call('ZRANGE', queue_of(way.ep.root, way.ep.place, namespace), from, from + LIMIT.line_look - 1)
      ahead = {}
      for position = #ids, 1, -1 do ahead[#ahead + 1] = ids[position] end
      way.ahead[namespace] = ahead
    end
    local id = table.remove(ahead)
    if id then return namespace, id end
    way.done[namespace] = true
  end
end

-- The limits of the endpoint may be others from now on. What went at a slower pace must not hold back a faster one: no rate
-- is ahead by more than it could be itself. That leaves one that did not change as it is, so this brings nobody more.
local function limits_set(root, id, now)
  local ep, key = endpoint_of(root, id), root .. KEY.endpoint .. id
  local function most(rate) return now + LIMIT.rate_ahead_ms + 1000 / rate end
  if ep.rate > 0 and ep.tat > most(ep.rate) then redis.call('HSET', key, 'tat', most(ep.rate)) end
  for _, field in ipairs(ep.shares and redis.call('HKEYS', key) or {}) do
    local namespace = string.match(field, '^tat:(.+)$')
    local share = namespace and share_of(ep, namespace)
    if share and share.rate > 0 and share.tat > most(share.rate) then
      redis.call('HSET', key, field, most(share.rate))
    end
  end
  -- Who waited at a limit of its own is looked at again, also where it waits for a version.
  local places = { id }
  for _, pin in ipairs(redis.call('SMEMBERS', root .. KEY.pins .. id)) do places[#places + 1] = id .. '|' .. pin end
  for _, place in ipairs(places) do
    for _, namespace in ipairs(redis.call('ZRANGE', root .. KEY.parked .. place, 0, -1)) do
      redis.call('ZADD', root .. KEY.parked .. place, 0, namespace)
    end
  end
end

-- Drain ------------------------------------------------------------------------------------------------------------

-- What went out of a namespace's line, counted in windows: text `begin count rate of the window before, per ms`.
local function read_drain(text)
  local begin, count, before = string.match(text or '', '^(%S+) (%S+) (%S+)$')
  return tonumber(begin) or 0, tonumber(count) or 0, tonumber(before) or 0
end

local function note_drain(ep, went, now)
  for namespace, more in pairs(went) do
    local share = share_of(ep, namespace)
    if share and share.cap > 0 then
      local key, field = ep.root .. KEY.endpoint .. ep.id, 'drain:' .. namespace
      local begin, count, before = read_drain(redis.call('HGET', key, field))
      local length = now - begin
      if length > 2 * LIMIT.drain_ms then
        begin, count, before = now, 0, 0
      elseif length > LIMIT.drain_ms then
        begin, count, before = now, 0, count / length
      end
      redis.call('HSET', key, field, string.format('%d %d %.9f', begin, count + more, before))
    end
  end
end

-- nil, or {how many wait, the most that may, ms until about half of them went (0: nothing goes)} when the namespace's part of
-- the line is full.
local function backlog(ep, namespace, pin, now, gather)
  local share = share_of(ep, namespace)
  if not share or share.cap == 0 then return nil end
  if share.clear and (share.max > 0 or share.rate > 0 or ep.max > 0 or ep.rate > 0) then return nil, share.cap end
  local depth = size_of(gather, queue_of(ep.root, ep.id, namespace))
  if pin then depth = depth + size_of(gather, queue_of(ep.root, ep.id .. '|' .. pin, namespace)) end
  if depth < share.cap then return nil, share.cap - depth end
  local begin, count, rate = read_drain(redis.call('HGET', ep.root .. KEY.endpoint .. ep.id, 'drain:' .. namespace))
  local length = now - begin
  if length > 2 * LIMIT.drain_ms then
    rate = 0
  elseif rate == 0 or length > LIMIT.drain_ms / 2 then
    rate = count / math.max(length, LIMIT.drain_least_ms)
  end
  return { depth, share.cap, rate > 0 and math.ceil(depth / 2 / rate) or 0 }
end

-- Later ------------------------------------------------------------------------------------------------------------

local function later_key(root, endpoint, namespace)
  return root .. KEY.later .. endpoint .. ':' .. namespace
end

-- nil, or {how many of the namespace are accepted for later, the most that may be, ms until the first of them begins, 1}.
local function later_full(ep, namespace, now)
  local share = share_of(ep, namespace)
  if not share or share.later == 0 then return nil end
  local key = later_key(ep.root, ep.id, namespace)
  redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
  local count = redis.call('ZCARD', key)
  if count < share.later then return nil end
  return { count, share.later, tonumber(redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')[2]) - now, 1 }
end

-- One more of them. What of it was not looked at again goes by itself when the last of them has begun.
local function note_later(op, ep)
  local share = share_of(ep, op.namespace)
  if not share or share.later == 0 then return end
  local key = later_key(ep.root, ep.id, op.namespace)
  redis.call('ZADD', key, op.start_at, op.id)
  redis.call('PEXPIREAT', key, op.start_at, 'NX')
  redis.call('PEXPIREAT', key, op.start_at, 'GT')
end
