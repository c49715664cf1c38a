-- retry: the attempt failed in a way worth repeating; back off, or end when no attempt is left.
-- Keys: partition root. Arguments: msgpack {id, run, attempt, delay_ms, detail, instance, free}, outcome for the last attempt;
--   `free` 1: what failed was the mesh's own, and the attempt counts against no limit;
--   from an agent by its task token {id, run, attempt, least_ms, chance, detail, free}: the policy that the endpoint has now
--   says how long, `chance` in [-1, 1] moves it by its jitter, `least_ms` is what the agent asked for.
-- Reply: {'backing_off', now, due_at, endpoint with a waiting line or ''} or {'exhausted', now, seq, endpoint...}
--     or {'canceled', now, seq, ...}: a cancel was asked meanwhile, so nothing is sent again
--     or {'same', now, state}: superseded or ended; to an agent 'lost' or 'ended', and 'same' for a repeat.
-- Refuses: UNKNOWN. Flag allow-oom.
local function back_off(op, a)
  if a.delay_ms then return a.delay_ms end
  if a.free == 1 then
    local delay = math.min(LIMIT.postponed_ms * 2 ^ math.min(op.resumes - 1, 16), LIMIT.postponed_ms_max)
    return math.max(math.floor(delay * (1 + 0.2 * a.chance)), a.least_ms)
  end
  local policy = redis.call('HGET', op.root .. KEY.endpoint .. op.endpoint, 'retry')
  local initial, factor, most, jitter = string.match(policy or '', '^(%S+) (%S+) (%S+) (%S+)$')
  if not initial then initial, factor, most, jitter = 1000, 2, 60000, 0.2 end
  local tries = math.min(math.max(spent(op) - 1, 0), 64)
  local delay = math.min(tonumber(initial) * tonumber(factor) ^ tries, tonumber(most))
  return math.max(math.floor(delay * (1 + tonumber(jitter) * a.chance)), a.least_ms)
end

local function mesh1_retry(keys, argv, gather)
  local root = keys[1]
  local a = given(argv[1], 'id', 'run', 'attempt')
  local _ = a.delay_ms and #a.instance or (a.least_ms + a.chance)
  local outcome = assert(argv[2])
  local op = load(root, a.id)
  if not op then return refuse('UNKNOWN', a.id) end
  local now = gather and gather.now or now_ms()
  op.gather = gather
  if a.delay_ms then
    -- A gateway that was taken for dead does not know what became of a request that its agent has and beats for.
    if a.run ~= op.run or a.attempt ~= op.attempt or op.state ~= S.scheduled or op.start ~= D.leased or kept(op) then
      return { 'same', now, op.state }
    end
  else
    local word = standing(op, a.run, a.attempt)
    if word == 'lost' and a.run == op.run and a.attempt == op.attempt then
      -- In flight by push it may say so too, before its request is answered; else it was said before.
      word = (op.state == S.scheduled and op.start == D.leased) and 'ok' or 'same'
    end
    if word ~= 'ok' then return { word, now, op.state } end
  end
  emit(op, E.attempt_failed, now, a.detail, nil, a.instance or op.instance)
  if a.free == 1 then op.resumes = op.resumes + 1 end
  if op.cancel_asked == 1 and op.journal == 0 then
    apply(op, 'cancel')
    settle(op, now, E.canceled)
    save(op, 'r', cmsgpack.pack({ 'mesh', 'canceled_before_start' }))
    tell(op)
    return { 'canceled', now, op.seq, waiting_line(op) }
  end
  if op.attempts_max > 0 and spent(op) >= op.attempts_max then
    apply(op, 'exhaust')
    settle(op, now, E.failed, 'attempts_exhausted')
    save(op, 'r', outcome)
    tell(op)
    return { 'exhausted', now, op.seq, waiting_line(op) }
  end
  take_back(op, 'retry', now + back_off(op, a))
  save(op)
  tell(op)
  return { 'backing_off', now, op.start_at, waiting_line(op) }
end
