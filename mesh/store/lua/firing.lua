-- schedule_claim / schedule_fire / schedule_pass: what is due at its time, from any gateway, each time once.
-- A claim is a lease and changes nothing else: a time is over only together with what became of it, so that none gets lost
-- with a gateway that dies in between.

-- Those of one namespace, put off by `lease_ms` for all others.
local function claim_of(root, ns, now, count, lease_ms, found)
  local all = root .. KEY.schedules_due .. ns
  for _, id in ipairs(redis.call('ZRANGE', all, '-inf', now, 'BYSCORE', 'LIMIT', 0, count)) do
    local f = redis.call('HMGET', root .. KEY.schedule .. id, 'ns', 'name', 'version', 'document', 'next')
    if f[1] then
      redis.call('ZADD', all, now + lease_ms, id)
      local first = redis.call('ZRANGE', root .. KEY.schedule_queue .. id, 0, 0)[1]
      found[#found + 1] = { id, f[1], f[2], tonumber(f[3]), f[4], tonumber(f[5]), first or '' }
    else
      redis.call('ZREM', all, id)
    end
  end
  stand(root, ns, now, true)
end

-- schedule_claim: schedules to look at, of all namespaces whose turn it is alike. Arguments: msgpack {count, lease_ms, most, held}:
--   `count` in all; `held`: namespace -> how many of it are looked at here, which are `most` at most.
-- Reply: {now, schedules, next look ms or -1}; a schedule is {id, ns, name, version, document, next, earliest of the queue or ''}.
local function mesh1_schedule_claim(keys, argv)
  local root = keys[1]
  local a = given(argv[1], 'count', 'lease_ms', 'most', 'held')
  local now, found, turns = now_ms(), {}, root .. KEY.schedule_turns
  local full, wanted = 0, {}
  for _, held in pairs(a.held) do
    if held >= a.most then full = full + 1 end
  end
  for _, ns in ipairs(redis.call('ZRANGE', turns, '-inf', now, 'BYSCORE', 'LIMIT', 0, a.count + full)) do
    if (a.held[ns] or 0) < a.most and #wanted < a.count then wanted[#wanted + 1] = ns end
  end
  local each = math.floor(a.count / math.max(#wanted, 1))
  for _, ns in ipairs(wanted) do
    claim_of(root, ns, now, math.min(each, a.most - (a.held[ns] or 0)), a.lease_ms, found)
  end
  local first = redis.call('ZRANGE', turns, 0, full, 'WITHSCORES')
  for at = 1, #first, 2 do
    if (a.held[first[at]] or 0) < a.most then return { now, found, math.floor(tonumber(first[at + 1])) } end
  end
  return { now, found, -1 }
end

local function goes_on(root, id)
  if not id or id == '' then return false end
  local sound, op = pcall(load, root, id)
  return sound and op and op.state < S.succeeded
end

-- The time is over: the clock goes on to the next, or the queue is rid of it. '' when the schedule is not any more as it was.
local function pass(root, a)
  local key = root .. KEY.schedule .. a.id
  local f = redis.call('HMGET', key, 'version', 'next', 'paused', 'last')
  if tonumber(f[1]) ~= a.version or f[3] == '1' then return nil end
  if a.way == 'clock' then
    if tonumber(f[2]) ~= a.at then return nil end
    return { last = f[4], over = function() redis.call('HSET', key, 'next', a.next, 'due', a.due) end }
  end
  local queue, member = root .. KEY.schedule_queue .. a.id, string.format('%.0f', a.at) .. '.' .. a.way
  if not redis.call('ZSCORE', queue, member) then return nil end
  return { last = f[4], over = function() redis.call('ZREM', queue, member) end }
end

-- schedule_fire: one scheduled time, decided and started in one step.
-- Arguments: msgpack {id, version, at, way, next, due, overlap, session, cancel_lease_ms, callback_lease_ms}, then those of a
--   start. `way`: 'clock', or of the queue's entry; `overlap`: what the clock does while the last run goes on.
-- Reply: {'started' | 'repeated', now, operation id, reply of the cancel of the last run or false}
--     or {'skipped' | 'queued' | 'busy' | 'moved', now}: busy: its turn comes later; moved: somebody else did it, or it was changed.
-- Refuses as start does, and then nothing changed. Flags as start.
local function mesh1_schedule_fire(keys, argv)
  local root = keys[1]
  local a = given(argv[1], 'id', 'version', 'at', 'way', 'next', 'due', 'overlap', 'session', 'cancel_lease_ms', 'callback_lease_ms')
  local now, key = now_ms(), root .. KEY.schedule .. a.id
  local time = pass(root, a)
  if not time then return { 'moved', now } end
  local running = goes_on(root, time.last)
  if a.way == 'queue' and running then
    look_again(root, a.id, now, LIMIT.queue_look_ms)
    return { 'busy', now }
  end
  if a.way == 'clock' and a.overlap == 'queue' then
    local queue = root .. KEY.schedule_queue .. a.id
    local waiting = redis.call('ZCARD', queue)
    if (running or waiting > 0) and waiting < LIMIT.schedule_queue then
      redis.call('ZADD', queue, a.at, string.format('%.0f', a.at) .. '.queue')
      time.over()
      look_again(root, a.id, now, running and LIMIT.queue_look_ms or 0)
      return { 'queued', now }
    end
  end
  if a.way == 'clock' and running and (a.overlap == 'skip' or a.overlap == 'queue') then
    time.over()
    redis.call('HSET', key, 'skipped_at', a.at)
    redis.call('HINCRBY', key, 'skipped', 1)
    look_again(root, a.id, now, 0)
    return { 'skipped', now }
  end
  local reply = start_one(root, nil, unpack(argv, 2, 6))
  local id = not reply.err and reply[1] == 'replayed' and reply[3]
  if reply.err then
    -- Another document ran at this time already.
    id = string.match(reply.err, 'MESH_KEY_REUSED (%S+)')
    if not id then return reply end
  end
  time.over()
  local again = id and true or false
  id = id or argv[3]
  local canceled = false
  if not again then
    redis.call('HSET', key, 'last', id, 'last_at', a.at)
    redis.call('HINCRBY', key, 'started', 1)
    if running and a.way == 'clock' and a.overlap == 'cancel_previous' then
      local ns = redis.call('HGET', key, 'ns')
      canceled = mesh1_cancel(keys, { cmsgpack.pack({
        id = time.last, ns = ns, session = a.session, cancel_lease_ms = a.cancel_lease_ms, callback_lease_ms = a.callback_lease_ms,
      }) })
    end
  end
  local runs = root .. KEY.schedule_runs .. a.id
  redis.call('ZADD', runs, a.at, id)
  redis.call('ZREMRANGEBYRANK', runs, 0, -LIMIT.schedule_runs - 1)
  look_again(root, a.id, now, a.way ~= 'allow' and LIMIT.queue_look_ms or 0)
  return { again and 'repeated' or 'started', now, id, canceled }
end

-- schedule_pass: a time, or all up to `next`, is over without a run. Arguments: msgpack {id, version, at, way, next, due, what,
--   told}; `what`: 'missed' or 'failed', `told`: JSON of it, kept as the last one. Reply: {'passed' | 'moved', now}. Flag allow-oom.
local function mesh1_schedule_pass(keys, argv)
  local root = keys[1]
  local a = given(argv[1], 'id', 'version', 'at', 'way', 'next', 'due', 'what', 'told')
  local now, key = now_ms(), root .. KEY.schedule .. a.id
  local time = pass(root, a)
  if not time then return { 'moved', now } end
  time.over()
  redis.call('HSET', key, a.what .. '_told', a.told)
  redis.call('HINCRBY', key, a.what, 1)
  look_again(root, a.id, now, 0)
  return { 'passed', now }
end
