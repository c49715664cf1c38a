-- beat / leave / hand_back: gateway sessions and the takeover of a dead one's work (P114).

-- Hands operations that `session` holds back to `due`: those in `ids`, else the first LIMIT.takeover. Returns how many
-- the session still holds.
local function hand_over(root, session, now, ids)
  local key = root .. KEY.held .. session
  for _, id in ipairs(ids or redis.call('ZRANGE', key, 0, LIMIT.takeover - 1)) do
    local op = load_listed(root, key, id)
    if op and op.owner == session then
      if op.start == D.leased and op.beat_by > now then
        -- Its agent was told `ok`, or would be: who stays silent from now on loses it when that lease ends.
        op.owner = ''
        op.start_at, op.start_by = op.beat_by, 0
        if op.run_ms > 0 then op.finish_by = now + op.run_ms end
      elseif op.start == D.leased then
        apply(op, 'lose')
        op.start, op.start_at = D.due, now
        free_slot(op)
        emit(op, E.attempt_lost, now, 'gateway')
      end
      for _, kind in ipairs({ 'cancel', 'callback' }) do
        if op[H[kind]] == D.leased then
          op[H[kind]] = D.due
          op[H[kind .. '_at']] = now
        end
      end
      save(op)
      tell(op)
    elseif op then
      redis.call('ZREM', key, id)
    end
  end
  return redis.call('ZCARD', key)
end

-- Takes away what is left of endpoints whose deletion is long ago, unless work of them waits or counts: that work goes on
-- when the name comes back to its owner.
local function forget_endpoints(root, now)
  for _, id in ipairs(redis.call('ZRANGE', root .. KEY.gone, '-inf', now, 'BYSCORE', 'LIMIT', 0, LIMIT.gone)) do
    local f = redis.call('HMGET', root .. KEY.endpoint .. id, 'gone', 'name', 'run')
    local waits = redis.call('EXISTS', root .. KEY.waiting .. id, root .. KEY.pins .. id) > 0 or (tonumber(f[3] or '0') or 0) > 0
    if f[1] == '1' and waits then
      redis.call('ZADD', root .. KEY.gone, now + LIMIT.gone_again_ms, id)
    else
      redis.call('ZREM', root .. KEY.gone, id)
      if f[1] == '1' then
        for _, kind in ipairs({ 'endpoint', 'callers', 'contract', 'running' }) do
          redis.call('DEL', root .. KEY[kind] .. id)
        end
        if redis.call('HGET', root .. KEY.names, f[2]) == id then redis.call('HDEL', root .. KEY.names, f[2]) end
      end
    end
  end
end

-- beat: join or stay; take over the work of sessions that went silent.
-- Keys: partition root. Arguments: msgpack {session, join, dead_after_ms, replaces}.
--   `replaces`: name prefix whose other sessions are known to be dead (a restarted gateway reclaims its own at once).
-- Reply: {'alive' | 'lost', now, live sessions, registry version, left}. 'lost': it was taken for dead; join anew.
--   `left`: operations that dead sessions still hold; beat again at once.
local function mesh1_beat(keys, argv)
  local root = keys[1]
  local a = given(argv[1], 'session', 'join', 'dead_after_ms', 'replaces')
  local now = now_ms()
  local sessions = root .. KEY.sessions
  note_pulse(root, now)
  if a.join == 0 and not listed(root, a.session) then return { 'lost', now, 0, 0, 0 } end
  -- Beats come three times as often as a session may be silent. When nobody beat for twice that, the store was stopped or
  -- away, and all look dead to whoever comes back first: everybody gets the whole time anew.
  local newest = redis.call('ZRANGE', sessions, 0, 0, 'REV', 'WITHSCORES')[2]
  if newest and now - tonumber(newest) > a.dead_after_ms * 2 / 3 then
    for _, other in ipairs(redis.call('ZRANGE', sessions, '(0', '+inf', 'BYSCORE')) do
      redis.call('ZADD', sessions, now, other)
    end
  end
  redis.call('ZADD', sessions, now, a.session)
  local dead = redis.call('ZRANGE', sessions, '-inf', now - a.dead_after_ms, 'BYSCORE')
  if a.replaces ~= '' then
    for _, other in ipairs(redis.call('ZRANGE', sessions, 0, -1)) do
      if other ~= a.session and string.sub(other, 1, #a.replaces) == a.replaces then dead[#dead + 1] = other end
    end
  end
  forget_endpoints(root, now)
  local left = 0
  for _, other in ipairs(dead) do
    -- A session that still holds something stays listed with score 0, so that it is dead for `start` and `claim` only
    -- after its last operation moved: it cannot take new work in between, for score 0 is found again at once.
    local held = hand_over(root, other, now)
    if held == 0 then
      redis.call('ZREM', sessions, other)
    else
      redis.call('ZADD', sessions, 0, other)
      left = left + held
    end
  end
  local version = tonumber(redis.call('GET', root .. KEY.registry_version) or '0')
  return { 'alive', now, redis.call('ZCARD', sessions), version, left }
end

-- leave: a gateway that drains hands everything back. Reply: {left over, now}; repeat until 0.
local function mesh1_leave(keys, argv)
  local root = keys[1]
  local a = given(argv[1], 'session')
  local now = now_ms()
  local left = hand_over(root, a.session, now)
  if left == 0 then redis.call('ZREM', root .. KEY.sessions, a.session) end
  return { left, now }
end

-- hand_back: a gateway gives back what the store says it holds and it knows nothing of (the reply that leased it was
-- lost). Arguments: msgpack {session, ids}. Reply: {left over, now}.
local function mesh1_hand_back(keys, argv)
  local a = given(argv[1], 'session', 'ids')
  local now = now_ms()
  return { hand_over(keys[1], a.session, now, a.ids), now }
end
