-- Attempts that agents fetch themselves (endpoints of kind pull): who has them, how they are handed out and given back.
-- No session owns such an attempt: it is started and leased as soon as it is handed out, and its lease is the timer.

-- `op` joined the line of its endpoint, or that of its version, which the message then names.
local function call_pollers(op)
  local line = line_of(op, op.blocked)
  redis.call('PUBLISH', op.root .. CHANNEL.pull .. op.endpoint, string.sub(line, #op.endpoint + 1))
end

-- Whether the present attempt is out, and was fetched by `op.instance`.
local function held(op)
  return op.state == S.started and op.start == D.delivered and op.instance ~= ''
end

-- Whoever fetched the attempt shall hear at its next poll, wherever that is, that it need not go on.
local function tell_holder(op)
  redis.call('PUBLISH', op.root .. CHANNEL.pull .. op.endpoint,
    op.instance .. ' ' .. op.id .. ' ' .. op.run .. ' ' .. op.attempt .. ' ' .. op.state)
end

-- Whoever fetched the attempt is silent: its polls that still wait may have nobody behind them.
local function tell_silence(op)
  redis.call('PUBLISH', op.root .. CHANNEL.pull .. op.endpoint, op.instance .. ' silent')
end

-- The next attempt, to `instance`: dispatched and started in one step. The caller has checked `hindrance`.
-- `counted`: the instance has a version.
local function hand_out(op, ep, instance, lease_ms, counted, now)
  apply(op, 'dispatch')
  apply(op, 'start')
  op.start, op.start_at, op.start_by = D.delivered, 0, 0
  op.blocked = ''
  next_attempt(op)
  op.instance = instance
  op.beat_ms, op.beat_by = lease_ms, now + lease_ms
  if op.run_ms > 0 then op.finish_by = now + op.run_ms end
  take_place(op, ep, now)
  if counted then count_at(op, instance) end
  emit(op, E.started, now, nil, nil, instance)
end

-- The attempt that a task token names, seen from the record: 'ok' while it is out, else 'lost' or 'ended'.
local function standing(op, run, attempt)
  if op.run ~= run or op.attempt ~= attempt then return 'lost' end
  if op.state >= S.succeeded then return 'ended' end
  if op.state ~= S.started or op.start ~= D.delivered then return 'lost' end
  return 'ok'
end

-- Takes the attempt back from whoever has it; the start is due at `at`.
local function take_back(op, event, at)
  apply(op, event)
  op.start, op.start_at = D.due, at
  op.beat_by, op.finish_by = 0, 0
  free_slot(op)
end
