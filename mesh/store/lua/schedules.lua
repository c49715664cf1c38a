-- schedule_put / delete / pause / backfill: times at which operations are started. What a document means, and when its next
-- time is, the gateway says; here is kept how far it got. The hash `schedule` has
--   ns name document version clock created_at updated_at paused, next and due (the next scheduled time and when to act on it,
--   ms, 0: none), last and last_at (the last run and its time), started skipped missed failed (counts), and skipped_at,
--   missed_told, failed_told: the last of each.

local function schedule_named(root, a)
  local id = redis.call('HGET', root .. KEY.schedule_names .. a.ns, a.name)
  local f = id and redis.call('HMGET', root .. KEY.schedule .. id, 'version', 'document', 'clock', 'paused')
  if not f then return nil end
  return { id = id, version = tonumber(f[1]), document = f[2], clock = f[3], paused = f[4] == '1' }
end

-- Namespaces take turns: one stands at the time since when it has schedules to look at, or when it was served last if that is
-- later (`served`), so that no flood of one, however far behind, comes before what another has been waiting with.
local function stand(root, ns, now, served)
  local first = redis.call('ZRANGE', root .. KEY.schedules_due .. ns, 0, 0, 'WITHSCORES')
  local turns = root .. KEY.schedule_turns
  if not first[2] then return redis.call('ZREM', turns, ns) end
  local at = tonumber(first[2])
  if at > now then return redis.call('ZADD', turns, at, ns) end
  local since = not served and tonumber(redis.call('ZSCORE', turns, ns) or INF) or INF
  return redis.call('ZADD', turns, min_set(now, since), ns)
end

-- Puts the schedule where it is looked at next: at once when times wait their turn (`later_ms`: but not yet), else when due;
-- behind the others of its namespace that wait already, however late its time is.
local function look_again(root, id, now, later_ms)
  local f = redis.call('HMGET', root .. KEY.schedule .. id, 'due', 'paused', 'ns')
  local at, all = tonumber(f[1]) or 0, root .. KEY.schedules_due .. f[3]
  if redis.call('EXISTS', root .. KEY.schedule_queue .. id) == 1 then at = min_set(at > 0 and at or INF, now + later_ms) end
  if f[2] == '1' or at == 0 then
    redis.call('ZREM', all, id)
  else
    redis.call('ZADD', all, math.max(at, now), id)
  end
  stand(root, f[3], now, false)
end

-- schedule_put: create or replace. Arguments: msgpack {ns, name, id, if_match, clock, next, due}, document (JSON).
-- `if_match` as in endpoint_put. `next` and `due` count where `clock`, the document's times, is new; else it goes on where it is.
-- Reply: {'created' | 'replaced' | 'same', now, id, version}. Refuses: STALE_VERSION, TOO_MANY_SCHEDULES.
local function mesh1_schedule_put(keys, argv)
  local root = keys[1]
  local a = given(argv[1], 'ns', 'name', 'id', 'if_match', 'clock', 'next', 'due')
  local document, known, now = assert(argv[2]), schedule_named(root, a), now_ms()
  if known and known.document == document then return { 'same', now, known.id, known.version } end
  local version = known and known.version or 0
  local wrong = a.if_match == 'new' and known or a.if_match == '*' and not known
    or (a.if_match ~= '' and a.if_match ~= 'new' and a.if_match ~= '*' and tonumber(a.if_match) ~= version)
  if wrong then return refuse('STALE_VERSION', tostring(version)) end
  local names = root .. KEY.schedule_names .. a.ns
  if not known and redis.call('HLEN', names) >= LIMIT.schedules then
    return refuse('TOO_MANY_SCHEDULES', tostring(LIMIT.schedules))
  end
  local id = known and known.id or a.id
  local key = root .. KEY.schedule .. id
  if not known then
    redis.call('HSET', names, a.name, id)
    redis.call('HSET', key, 'ns', a.ns, 'name', a.name, 'created_at', now, 'paused', '0')
  end
  redis.call('HSET', key, 'document', document, 'version', version + 1, 'updated_at', now)
  if not known or known.clock ~= a.clock then redis.call('HSET', key, 'clock', a.clock, 'next', a.next, 'due', a.due) end
  look_again(root, id, now, 0)
  return { known and 'replaced' or 'created', now, id, version + 1 }
end

-- schedule_delete: its runs go on. Arguments: msgpack {ns, name, if_match}. Reply: {'deleted', now, id}.
-- Refuses: NO_SCHEDULE, STALE_VERSION.
local function mesh1_schedule_delete(keys, argv)
  local root = keys[1]
  local a = given(argv[1], 'ns', 'name', 'if_match')
  local known = schedule_named(root, a)
  if not known then return refuse('NO_SCHEDULE', a.name) end
  if a.if_match ~= '' and a.if_match ~= '*' and tonumber(a.if_match) ~= known.version then
    return refuse('STALE_VERSION', tostring(known.version))
  end
  redis.call('HDEL', root .. KEY.schedule_names .. a.ns, a.name)
  for _, kind in ipairs({ KEY.schedule, KEY.schedule_queue, KEY.schedule_runs }) do redis.call('DEL', root .. kind .. known.id) end
  local now = now_ms()
  redis.call('ZREM', root .. KEY.schedules_due .. a.ns, known.id)
  stand(root, a.ns, now, false)
  return { 'deleted', now, known.id }
end

-- schedule_pause: pause (1), or resume (0) with the next time from now on. Arguments: msgpack {ns, name, paused, next, due}.
-- Reply: {'paused' | 'resumed' | 'same', now, id}. Refuses: NO_SCHEDULE.
local function mesh1_schedule_pause(keys, argv)
  local root = keys[1]
  local a = given(argv[1], 'ns', 'name', 'paused', 'next', 'due')
  local known = schedule_named(root, a)
  if not known then return refuse('NO_SCHEDULE', a.name) end
  local now = now_ms()
  if known.paused == (a.paused == 1) then return { 'same', now, known.id } end
  redis.call('HSET', root .. KEY.schedule .. known.id, 'paused', tostring(a.paused))
  if a.paused == 0 then redis.call('HSET', root .. KEY.schedule .. known.id, 'next', a.next, 'due', a.due) end
  look_again(root, known.id, now, 0)
  return { a.paused == 1 and 'paused' or 'resumed', now, known.id }
end

-- schedule_backfill: times to run as if they came now. Arguments: msgpack {ns, name, way, times}; `way`: 'queue' one after the
-- other, 'allow' all at once. Reply: {'queued', now, how many wait}. Refuses: NO_SCHEDULE, QUEUE_FULL. A repeat changes nothing.
local function mesh1_schedule_backfill(keys, argv)
  local root = keys[1]
  local a = given(argv[1], 'ns', 'name', 'way', 'times')
  local known = schedule_named(root, a)
  if not known then return refuse('NO_SCHEDULE', a.name) end
  local queue, now = root .. KEY.schedule_queue .. known.id, now_ms()
  if redis.call('ZCARD', queue) + #a.times > LIMIT.schedule_queue then return refuse('QUEUE_FULL', tostring(LIMIT.schedule_queue)) end
  for _, at in ipairs(a.times) do redis.call('ZADD', queue, at, string.format('%.0f', at) .. '.' .. a.way) end
  look_again(root, known.id, now, 0)
  return { 'queued', now, redis.call('ZCARD', queue) }
end
