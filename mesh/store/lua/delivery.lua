-- delivered / defer / redeliver: what became of one try to deliver a cancel or a callback. Starts have their own verbs.

local function repeatable(kind)
  return kind == 'cancel' or kind == 'callback'
end

-- delivered: the receiver has it.
-- Keys: partition root. Arguments: msgpack {id, run, kind}. Reply: {'delivered' | 'same', now}.
-- Refuses: UNKNOWN, NOT_OWED.
local function mesh1_delivered(keys, argv, gather)
  local root = keys[1]
  local a = given(argv[1], 'id', 'run', 'kind')
  local op = load(root, a.id)
  if not op then return refuse('UNKNOWN', a.id) end
  if not repeatable(a.kind) then return refuse('NOT_OWED', a.id) end
  local now = gather and gather.now or now_ms()
  op.gather = gather
  if a.run ~= op.run then return { 'same', now } end
  local was_dead = op[H[a.kind]] == D.dead
  if apply_delivery(op, a.kind, 'deliver') ~= 'moved' then return { 'same', now } end
  if was_dead then redis.call('ZREM', root .. KEY.dead .. op.namespace, a.id .. '.' .. a.run .. '.' .. a.kind) end
  emit(op, a.kind == 'cancel' and E.cancel_delivered or E.callback_delivered, now)
  save(op)
  tell(op)
  return { 'delivered', now }
end

-- defer: the try failed; due again after delay_ms, or dead when `dead` is 1.
-- Keys: partition root. Arguments: msgpack {id, run, kind, tries, delay_ms, dead, detail}.
-- Reply: {'deferred' | 'dead' | 'same', now}. `tries` fences: a superseded try changes nothing.
-- Refuses: UNKNOWN, NOT_OWED.
local function mesh1_defer(keys, argv)
  local root = keys[1]
  local a = given(argv[1], 'id', 'run', 'kind', 'tries', 'delay_ms', 'dead')
  local op = load(root, a.id)
  if not op then return refuse('UNKNOWN', a.id) end
  if not repeatable(a.kind) then return refuse('NOT_OWED', a.id) end
  local now = now_ms()
  if a.run ~= op.run or a.tries ~= op[H[a.kind .. '_tries']] or op[H[a.kind]] ~= D.leased then return { 'same', now } end
  local callback = a.kind == 'callback'
  apply_delivery(op, a.kind, a.dead == 1 and 'bury' or 'defer')
  if a.dead == 1 then
    op[H[a.kind .. '_at']] = now
    redis.call('ZADD', root .. KEY.dead .. op.namespace, now, a.id .. '.' .. a.run .. '.' .. a.kind)
    emit(op, callback and E.callback_dead or E.cancel_failed, now, a.detail)
  else
    op[H[a.kind .. '_at']] = now + a.delay_ms
    if callback then emit(op, E.callback_failed, now, a.detail) end
  end
  save(op)
  tell(op)
  return { a.dead == 1 and 'dead' or 'deferred', now }
end

-- redeliver: an operator or the owner sends a dead (or delivered) callback or cancel again, with the same id.
-- Keys: partition root. Arguments: msgpack {id, run, kind, ns}. Reply: {'due' | 'same', now}.
-- Refuses: UNKNOWN (also for another namespace or run), NOT_OWED.
local function mesh1_redeliver(keys, argv)
  local root = keys[1]
  local a = given(argv[1], 'id', 'run', 'kind', 'ns')
  local op = load(root, a.id)
  if not op or op.namespace ~= a.ns or op.run ~= a.run then return refuse('UNKNOWN', a.id) end
  if not repeatable(a.kind) then return refuse('NOT_OWED', a.id) end
  local now = now_ms()
  local verdict = apply_delivery(op, a.kind, 'redeliver')
  if not verdict then return refuse('NOT_OWED', a.id) end
  if verdict == 'same' then
    op[H[a.kind .. '_at']] = math.min(op[H[a.kind .. '_at']], now)
    if op[H[a.kind]] == D.leased then return { 'same', now } end
  else
    op[H[a.kind .. '_at']] = now
    redis.call('ZREM', root .. KEY.dead .. op.namespace, a.id .. '.' .. a.run .. '.' .. a.kind)
    emit(op, E.redelivered, now, a.kind)
  end
  save(op)
  tell(op)
  return { 'due', now }
end
