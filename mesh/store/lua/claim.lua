-- claim: fire the timers that are due and lease the deliveries they owe; also purges what is past retention.
-- Keys: partition root. Arguments: msgpack {session, count, bytes, cancel_lease_ms, callback_lease_ms}.
-- Reply: {now, works, ended ids, endpoints with a waiting line (and `|` where it is of pins), next timer ms or -1}. At most `count` operations and
--   about `bytes` of payload per call. Looks at `due` and at the caller's own `held`. Flag allow-oom.

local function end_by_time(op, now, reason)
  -- Only now is the token that is kept the one of the attempt out there; a later 201 brings its own.
  local known, fetched = op.state == S.started and op.suspended == 0, held(op)
  apply(op, 'time_out')
  settle(op, now, E.timed_out, reason)
  -- The agent is told to stop, best effort (P102).
  if fetched then
    tell_holder(op)
  elseif known and op.cancel == D.none then
    apply_delivery(op, 'cancel', 'owe')
    op.cancel_at = now
  end
  return cmsgpack.pack({ 'mesh', reason })
end

local function overdue(at, now)
  return at > 0 and at <= now
end

-- The holder of the attempt is silent: the attempt is spent, the start is due again at once.
local function lose(op, now, detail)
  if held(op) then tell_silence(op) end
  take_back(op, 'lose', now)
  emit(op, E.attempt_lost, now, detail)
end

-- What is known of an endpoint in this call is counted along; a slot that `op` freed is not, so it is read anew.
local function forget_if_freed(endpoints, op)
  if op.freed then endpoints[op.endpoint] = nil end
end

-- Fires every timer of `op` that is due. Returns outcome to store or nil, and the kinds of deliveries leased.
local function fire(op, now, a, endpoints)
  local outcome, kinds = nil, {}
  if op.state < S.succeeded then
    if overdue(op.close_by, now) then
      outcome = end_by_time(op, now, 'schedule_to_close')
    elseif op.state ~= S.started and overdue(op.start_by, now) then
      outcome = end_by_time(op, now, 'schedule_to_start')
    elseif overdue(op.finish_by, now) then
      outcome = end_by_time(op, now, 'start_to_close')
    else
      if op.state == S.started and overdue(op.beat_by, now) then
        lose(op, now, 'heartbeat')
      elseif op.start == D.leased and overdue(op.start_at, now) then
        lose(op, now, kept(op) and 'heartbeat' or 'request_lease')
      end
      forget_if_freed(endpoints, op)
      if op.start == D.due and op.blocked == '' and overdue(op.start_at, now) then
        if op.cancel_asked == 1 and op.journal == 0 then
          apply(op, 'cancel')
          settle(op, now, E.canceled)
          outcome = cmsgpack.pack({ 'mesh', 'canceled_before_start' })
        elseif op.attempts_max > 0 and spent(op) >= op.attempts_max then
          apply(op, 'exhaust')
          settle(op, now, E.failed, 'attempts_exhausted')
          outcome = cmsgpack.pack({ 'mesh', 'attempts_exhausted' })
        else
          local ep = endpoints[op.endpoint] or endpoint_of(op.root, op.endpoint)
          endpoints[op.endpoint] = ep
          local reason = ep and hindrance_outside(ep, op.namespace, now)
          if not ep then
            -- Forgotten meanwhile (forget_endpoints): nothing can bring it back, so nothing would ever end this.
            apply(op, 'exhaust')
            settle(op, now, E.failed, 'endpoint_deleted')
            outcome = cmsgpack.pack({ 'mesh', 'endpoint_deleted' })
          elseif reason == '' and not ep.pull then
            dispatch(op, ep, a.session, now)
            kinds[#kinds + 1] = 'start'
          else
            apply(op, 'block')
            op.blocked = reason ~= '' and reason or 'busy'
            emit(op, E.blocked, now, op.blocked)
            if ep.pull then call_pollers(op) end
          end
        end
      end
    end
  end
  if owed(op.cancel) and overdue(op.cancel_at, now) then
    lease_cancel(op, a.session, now, a.cancel_lease_ms)
    kinds[#kinds + 1] = 'cancel'
  end
  if owed(op.callback) and overdue(op.callback_at, now) then
    lease_callback(op, a.session, now, a.callback_lease_ms)
    kinds[#kinds + 1] = 'callback'
  end
  return outcome, kinds
end

-- The handler of `op` ended: what it started and did not end is not wanted any more, some of it per call.
local function close_children(op, now)
  local key = op.root .. KEY.unfinished .. op.id
  for _, id in ipairs(redis.call('SPOP', key, LIMIT.children_closed)) do
    local sound, child = pcall(load, op.root, id)
    if sound and child and child.state < S.succeeded and child.cancel_asked == 0 then
      local outcome = ask_to_end(child, now)
      if outcome then
        save(child, 'r', outcome)
      else
        if held(child) then
          tell_holder(child)
        elseif child.state == S.started and child.suspended == 0 and apply_delivery(child, 'cancel', 'owe') then
          child.cancel_at = now
        end
        save(child)
      end
      tell(child)
    end
  end
  if redis.call('EXISTS', key) == 0 then op.children = 3 end
end

local function mesh1_claim(keys, argv)
  local root = keys[1]
  local a = given(argv[1], 'session', 'count', 'bytes', 'cancel_lease_ms', 'callback_lease_ms')
  if not redis.call('ZSCORE', root .. KEY.sessions, a.session) then return refuse('NO_SESSION', a.session) end
  local now = now_ms()
  local works, ended, endpoints, bytes, left = {}, {}, {}, 0, a.count
  for _, key in ipairs({ root .. KEY.held .. a.session, root .. KEY.due }) do
    local ids = left > 0 and redis.call('ZRANGE', key, '-inf', now, 'BYSCORE', 'LIMIT', 0, left) or {}
    for _, id in ipairs(ids) do
      local op = load_listed(root, key, id)
      if op and bytes < a.bytes then
        left = left - 1
        if op.children == 2 then
          close_children(op, now)
          save(op)
        elseif op.state >= S.succeeded and not owed(op.cancel) and not owed(op.callback) then
          if read_later(op) then redis.call('ZADD', key, now + LIMIT.unread_ms, id) else purge(op) end
        else
          local outcome, kinds = fire(op, now, a, endpoints)
          forget_if_freed(endpoints, op)
          if outcome then save(op, 'r', outcome) else save(op) end
          if outcome then ended[#ended + 1] = id end
          tell(op)
          for _, kind in ipairs(kinds) do
            local item = work(op, kind)
            bytes = bytes + #item[4] + #item[5]
            works[#works + 1] = item
          end
        end
      end
    end
  end
  local line = {}
  for _, endpoint in ipairs(redis.call('SRANDMEMBER', root .. KEY.waiting_endpoints, LIMIT.waiting_endpoints)) do
    -- Pins are one entry with a mark: as a place each, versions that nobody has would crowd out everybody's lines.
    local waits, pins = redis.call('EXISTS', root .. KEY.waiting .. endpoint), redis.call('EXISTS', root .. KEY.pins .. endpoint)
    if waits == 1 then line[#line + 1] = endpoint end
    if pins == 1 then line[#line + 1] = endpoint .. '|' end
    if waits + pins == 0 then redis.call('SREM', root .. KEY.waiting_endpoints, endpoint) end
  end
  local first = redis.call('ZRANGE', root .. KEY.due, 0, 0, 'WITHSCORES')
  local mine = redis.call('ZRANGE', root .. KEY.held .. a.session, 0, 0, 'WITHSCORES')
  local at = math.min(tonumber(first[2] or 'inf') or INF, tonumber(mine[2] or 'inf') or INF)
  return { now, works, ended, line, at >= LIMIT.never and -1 or at }
end
