-- Who may go now, and who waits: limits of endpoints, limits of namespaces on them, and the waiting line. Loaded before
-- pins.lua and the prelude, whose `save` moves operations in and out of the line. Who goes next is turns.lua's.
-- `waiting` has all that wait for an endpoint, by when they could begin. The same stand in one `line` per namespace, by that
-- less what their priority is worth (P332): waiting a while makes up for a level, so nobody waits for ever.
-- Namespaces take turns (P330). `turns` has those of whom something may go, by virtual time: what they got since the line
-- formed, divided by their weight. Who comes in begins at the present, the least of all; `debts` keeps who left with more, so
-- that coming and going brings nothing. When nobody is left in `turns` nobody has to be just to anybody: all is forgotten.
-- `parked`: namespaces that wait at their own limit alone, by when to look at them again; they stand in nobody's way.

-- What a verb that takes many operations knows and writes once for all of them: the time, endpoints and sessions read, and
-- by key what leaves sorted sets and what enters them. `touched`: the operations with something in there. `apart`: none of
-- them is dispatched, so what joins waiting lines may enter with all others too; `sizes` are those that the lines will have.
-- `fresh`: none of the starts is known, and their keys are claimed (start_many.lua).
-- `place`: of the one that is at work among all of them. `alike`: by their arguments what became of starts and completions.
-- A verb that takes one operation has none of it.
local function gathering(now, apart)
  return { now = now, apart = apart, endpoints = {}, sessions = {}, left = {}, sets = {}, touched = {}, sizes = {}, alike = {} }
end

-- Arguments that are gathered, of which there are `count`. With room for as many as a call has most often: a table that grows
-- is copied each time it is full.
local function some_of(one, other)
  return {
    one, other, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil,
    nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, count = other and 2 or 1,
  }
end

-- Puts `id` into a sorted set, now or with all others of `gather`. Returns how many are in it then (nil where nobody asks).
local function put(gather, key, at, id, sized)
  if not gather then
    redis.call('ZADD', key, at, id)
    return sized and redis.call('ZCARD', key)
  end
  local set = gather.sets[key]
  if not set then
    set = some_of(at, id)
    gather.sets[key] = set
  else
    local count = set.count
    set[count + 1], set[count + 2], set.count = at, id, count + 2
  end
  if not sized then return nil end
  gather.sizes[key] = (gather.sizes[key] or redis.call('ZCARD', key)) + 1
  return gather.sizes[key]
end

-- Takes `id` out of a sorted set, now or with all others of `gather`.
local function take(gather, key, id)
  if not gather then
    redis.call('ZREM', key, id)
    return
  end
  local left = gather.left[key]
  if left then
    local count = left.count + 1
    left[count], left.count = id, count
  else
    gather.left[key] = some_of(id)
  end
end

local function put_all(gather)
  for key, left in pairs(gather.left) do
    for from = 1, left.count, LIMIT.put do
      redis.call('ZREM', key, unpack(left, from, math.min(from + LIMIT.put - 1, left.count)))
    end
  end
  for key, set in pairs(gather.sets) do
    for from = 1, set.count, LIMIT.put do
      redis.call('ZADD', key, unpack(set, from, math.min(from + LIMIT.put - 1, set.count)))
    end
  end
end

-- `id` is about to be saved. What is gathered of it from before goes first: all that leaves goes before all that enters.
local function touch(gather, id)
  if gather.touched[id] then
    put_all(gather)
    gather.left, gather.sets, gather.touched = {}, {}, {}
  end
  gather.touched[id] = true
end

local function size_of(gather, key)
  return gather and gather.sizes[key] or redis.call('ZCARD', key)
end

local function endpoint_of(root, endpoint)
  local f = redis.call('HMGET', root .. KEY.endpoint .. endpoint,
    'gone', 'paused', 'max', 'rate', 'tat', 'run', 'pull', 'shares')
  if not f[1] then return nil end
  return {
    id = endpoint, root = root, gone = f[1] == '1', paused = f[2] == '1', max = tonumber(f[3]) or 0,
    rate = tonumber(f[4]) or 0, tat = tonumber(f[5]) or 0, run = tonumber(f[6]) or 0, pull = f[7] == '1',
    shares = f[8] == '1',
  }
end

-- What the endpoint grants a namespace, and what that uses of it; nil where namespaces have no limits of their own.
local function share_of(ep, namespace)
  if not ep.shares then return nil end
  ep.of = ep.of or {}
  local share = ep.of[namespace]
  if not share then
    local f = redis.call('HMGET', ep.root .. KEY.endpoint .. ep.id,
      'run:' .. namespace, 'tat:' .. namespace, 'of:' .. namespace, 'of:*')
    local rate, max, weight, cap, later = string.match(f[3] or f[4] or '', '^(%S+) (%S+) (%S+) (%S+) ?(%S*)$')
    share = {
      rate = tonumber(rate) or 0, max = tonumber(max) or 0, weight = tonumber(weight) or 1, cap = tonumber(cap) or 0,
      later = tonumber(later) or 0,
      run = tonumber(f[1]) or 0, tat = tonumber(f[2]) or 0,
    }
    ep.of[namespace] = share
  end
  return share
end

-- `place`: the endpoint, or where what waits for one of its versions stands apart (pins.lua).
local function queue_of(root, place, namespace)
  return root .. KEY.line .. place .. ':' .. namespace
end

-- Why the namespace cannot have one more attempt of this endpoint out now, or ''. Its pace may run ahead by a little, since
-- couriers look at lines in steps.
local function own_limit(ep, namespace, now)
  local share = share_of(ep, namespace)
  if not share then return '' end
  if share.max > 0 and share.run >= share.max then return 'namespace_concurrency' end
  if share.rate > 0 and share.tat - now > LIMIT.rate_ahead_ms then return 'namespace_rate' end
  return ''
end

-- Why the endpoint cannot take one more dispatch now, or ''.
local function hindrance(ep, now)
  if ep.gone then return 'endpoint_deleted' end
  if ep.paused then return 'paused' end
  if ep.max > 0 and ep.run >= ep.max then return 'concurrency' end
  if ep.rate > 0 and ep.tat - now > LIMIT.rate_ahead_ms then return 'rate' end
  return ''
end

-- The same for an operation of `namespace` that is not in line: who is there may not be passed.
local function hindrance_outside(ep, namespace, now)
  local reason = hindrance(ep, now)
  if reason ~= '' then return reason end
  local turns, share = ep.root .. KEY.turns .. ep.id, share_of(ep, namespace)
  if share then
    share.clear = false
    reason = own_limit(ep, namespace, now)
    if reason ~= '' then return reason end
    local bounded, queue = share.max > 0 or share.rate > 0, queue_of(ep.root, ep.id, namespace)
    if redis.call('EXISTS', bounded and queue or turns, turns) == 0 then
      share.clear = true
      return ''
    end
    if bounded and redis.call('EXISTS', queue) == 1 then
      return share.max > 0 and 'namespace_concurrency' or 'namespace_rate'
    end
  end
  if (ep.max > 0 or ep.rate > 0) and redis.call('EXISTS', turns) == 1 then
    return ep.max > 0 and 'concurrency' or 'rate'
  end
  return ''
end

-- Turns ------------------------------------------------------------------------------------------------------------

local function enter_turns(root, place, namespace)
  local turns = root .. KEY.turns .. place
  local least = redis.call('ZRANGE', turns, 0, 0, 'WITHSCORES')
  local at = 0
  if least[1] then
    at = tonumber(least[2])
    local debts = root .. KEY.debts .. place
    local debt = redis.call('ZSCORE', debts, namespace)
    if debt then
      at = math.max(at, tonumber(debt))
      redis.call('ZREM', debts, namespace)
    end
  end
  redis.call('ZADD', turns, at, namespace)
end

-- Nothing of the namespace waits that may go; `cost` of what it got last. Returns whether it took turns.
local function leave_turns(root, place, namespace, cost)
  local turns, debts = root .. KEY.turns .. place, root .. KEY.debts .. place
  local at = redis.call('ZSCORE', turns, namespace)
  if not at then return false end
  redis.call('ZREM', turns, namespace)
  local least = redis.call('ZRANGE', turns, 0, 0, 'WITHSCORES')
  if not least[1] then
    redis.call('DEL', debts)
    return true
  end
  local present = tonumber(least[2])
  redis.call('ZREMRANGEBYSCORE', debts, '-inf', present)
  if at + cost > present then redis.call('ZADD', debts, at + cost, namespace) end
  return true
end

-- `id`: of `op`, or of one that waits for all that `op` waits for.
local function enter_line(op, place, id)
  local root = op.root
  local line = queue_of(root, place, op.namespace)
  local since = op.created_at + op.delay_ms
  local gather = op.gather and op.gather.apart and op.gather
  put(gather, root .. KEY.waiting .. place, since, id)
  -- Of a line with somebody in it the endpoint is told already.
  if put(gather, line, since - op.priority * LIMIT.priority_ms, id, true) == 1 then
    redis.call('SADD', root .. KEY.waiting_endpoints, op.endpoint)
    enter_turns(root, place, op.namespace)
  end
end

-- `cost`: of the turn that it was dispatched in, or 0.
local function leave_line(root, place, namespace, id, cost)
  local line = queue_of(root, place, namespace)
  redis.call('ZREM', root .. KEY.waiting .. place, id)
  if redis.call('ZREM', line, id) == 0 then return end
  if redis.call('EXISTS', line) == 0 then
    if not leave_turns(root, place, namespace, cost) then
      redis.call('ZREM', root .. KEY.parked .. place, namespace)
    end
  elseif cost > 0 then
    redis.call('ZADD', root .. KEY.turns .. place, 'XX', 'INCR', cost, namespace)
  end
end

-- Slots ------------------------------------------------------------------------------------------------------------

-- Only an endpoint with a limit is counted: some writes less for all others. A limit set later starts from zero.
-- `slot` 2: the namespace has a limit of its own, at which it may be parked.
local function take_slot(op, ep)
  if op.slot == 0 and (ep.max > 0 or ep.shares) then
    local share, key = share_of(ep, op.namespace), ep.root .. KEY.endpoint .. ep.id
    op.slot = share and share.max > 0 and 2 or 1
    ep.run = ep.run + 1
    if share then share.run = share.run + 1 end
    redis.call('HINCRBY', key, 'run', 1)
    redis.call('HINCRBY', key, 'run:' .. op.namespace, 1)
  end
end

local uncount -- pins.lua

local function free_slot(op)
  if op.counted ~= '' then uncount(op) end
  if op.slot > 0 then
    local key = op.root .. KEY.endpoint .. op.endpoint
    redis.call('HINCRBY', key, 'run', -1)
    redis.call('HINCRBY', key, 'run:' .. op.namespace, -1)
    local parked = op.root .. KEY.parked .. op.endpoint
    op.freed = true
    op.awaited = redis.call('EXISTS', op.root .. KEY.turns .. op.endpoint, parked) > 0
    if op.awaited and op.slot == 2 and redis.call('ZREM', parked, op.namespace) == 1 then
      enter_turns(op.root, op.endpoint, op.namespace)
    end
    op.slot = 0
  end
end

-- `tat` is when the rate would be used up evenly.
local function pace(ep, namespace, now)
  local key, share, own = ep.root .. KEY.endpoint .. ep.id, share_of(ep, namespace), nil
  if share and share.rate > 0 then
    share.tat = math.max(share.tat, now) + 1000 / share.rate
    own = 'tat:' .. namespace
  end
  if ep.rate > 0 then
    ep.tat = math.max(ep.tat, now) + 1000 / ep.rate
    if own then redis.call('HSET', key, 'tat', ep.tat, own, share.tat) else redis.call('HSET', key, 'tat', ep.tat) end
  elseif own then
    redis.call('HSET', key, own, share.tat)
  end
end

-- An attempt of `op` goes out: its slot, the pace, and its turn if it was in line.
local function take_place(op, ep, now)
  take_slot(op, ep)
  pace(ep, op.namespace, now)
  if op.was_blocked ~= '' then
    local share = share_of(ep, op.namespace)
    op.cost = share and 1 / share.weight or 1
  end
end
