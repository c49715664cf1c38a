-- What every verb stands on: time, keys, load, save, the two machines, timers, ownership. Loaded after line.lua and the generated
-- tables KEY, CHANNEL, OPERATION, DELIVERY, S (operation states), D (delivery states), E (event codes), LIMIT, H (places in
-- layout.HEAD), and decode_head / blank_head / encode_head made from it. Of `op`, `parent`, `earlier` and `child`, which are
-- operations and nothing else is, the fields of the head are places of an array (mesh/store/names.py).
-- Rules: validate everything, then write, for the store does not roll back. An operation has one entry in one timer
-- index: `held` of the session that leases any of its deliveries, else `due`.

local INF = 1 / 0 -- `math` is not reachable while a library loads

local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

local function refuse(word, detail)
  return redis.error_reply('MESH_' .. word .. ' ' .. (detail or ''))
end

-- What one of many is answered, of what `pcall` gave for it: a refusal or a fault is its own, and the others' replies stand.
-- A number is the place of the reply that it has too.
local function each(sound, reply)
  if not sound then return { 'broken', tostring(type(reply) == 'table' and reply.err or reply) } end
  if type(reply) == 'table' and reply.err then return { 'refused', reply.err } end
  return reply
end

-- The arguments, with all that the verb cannot do without: what a gateway of another version leaves out has to fail before
-- the first write.
local function given(packed, ...)
  local a = cmsgpack.unpack(packed)
  for _, name in ipairs({ ... }) do
    if a[name] == nil then error('argument ' .. name .. ' is missing') end
  end
  return a
end

-- The same for the two verbs that every operation comes by: what their calls have alike is unpacked and looked at once, and
-- kept by its bytes until there are too many. Nobody changes what it gives.
local function remembered(...)
  local names, seen, count = { ... }, {}, 0
  return function(packed)
    local a = seen[packed]
    if not a then
      a = cmsgpack.unpack(packed)
      for position = 1, #names do
        if a[names[position]] == nil then error('argument ' .. names[position] .. ' is missing') end
      end
      if count >= LIMIT.remembered then seen, count = {}, 0 end
      seen[packed], count = a, count + 1
    end
    return a
  end
end

-- A session that was taken for dead must lease nothing: nobody would look at it there. What it asks to lease stays due.
local function listed(root, session)
  return redis.call('ZSCORE', root .. KEY.sessions, session)
end

local function min_set(best, at)
  if at > 0 and at < best then return at end
  return best
end

-- The record -----------------------------------------------------------------------------------------------------

local function load(root, id)
  local packed = redis.call('HGET', root .. KEY.operation .. id, 'h')
  return packed and decode_head(packed, id, root) or nil
end

-- For whoever walks an index: the record, or nil after taking the entry out. A record that cannot be read (bytes flipped on
-- disk) must not stop all others: it gets a timer that never fires, and reading it says what is wrong.
local function load_listed(root, key, id)
  local sound, op = pcall(load, root, id)
  if sound and op and OPERATION[op.state] then return op end
  redis.call('ZREM', key, id)
  if not sound or op then redis.call('ZADD', root .. KEY.due, 'inf', id) end
  return nil
end

-- The fixed head of an element of a journal or stream (layout.Line): 1 for a child's, after_ms, attempt, total bytes.
local LINE, LINE_BYTES = '>BI8I4I4', 17

-- Length, time of the last entry and bytes of a journal.
local function journal_end(root, id)
  local key = root .. KEY.journal .. id
  local last = redis.call('LINDEX', key, -1)
  if not last then return 0, 0, 0 end
  local _, after, _, total = struct.unpack(LINE, last)
  return redis.call('LLEN', key), after, total
end

-- `attempt`: of another attempt than the present one. `instance`: the one whose answer it is, or nil.
local function emit(op, code, now, detail, attempt, instance)
  if op.seq >= LIMIT.events and op.state < S.succeeded then return end
  op.seq = op.seq + 1
  op.stamp = math.max(op.stamp, now - op.created_at)
  if not detail and op.journal == 0 and not (instance and instance ~= '') then
    -- As below, without a table in between: 147 begins an array of three.
    op.events = op.events .. '\147' .. cmsgpack.pack(code, op.stamp, attempt or op.attempt)
    return
  end
  local entry = { code, op.stamp, attempt or op.attempt }
  if detail and detail ~= '' then entry[4] = detail end
  if op.journal == 1 then
    -- Its place among the journal's entries, whose times it must not run behind.
    local length, after = journal_end(op.root, op.id)
    if after > op.stamp then op.stamp, entry[2] = after, after end
    entry[4], entry[5] = entry[4] or false, length
  end
  if instance and instance ~= '' then
    entry[4], entry[5], entry[6] = entry[4] or false, entry[5] or 0, instance
  end
  op.events = op.events .. cmsgpack.pack(entry)
end

-- Machines -------------------------------------------------------------------------------------------------------

-- 'moved', 'same' (a duplicate) or nil (illegal).
local function apply(op, event)
  local cell = OPERATION[op.state][event]
  if not cell then return nil end
  if cell == 0 then return 'same' end
  op.state = cell
  return 'moved'
end

local function apply_delivery(op, kind, event)
  local cell = DELIVERY[op[H[kind]]][event]
  if not cell then return nil end
  if cell == 0 then return 'same' end
  op[H[kind]] = cell
  return 'moved'
end

-- Timers and ownership ---------------------------------------------------------------------------------------------

local function owed(delivery)
  return delivery == D.due or delivery == D.leased
end

local function earliest(op)
  local best = INF
  if op.state < S.succeeded then
    best = min_set(best, op.close_by)
    best = min_set(best, op.finish_by)
    if op.state == S.started then
      best = min_set(best, op.beat_by)
    else
      best = min_set(best, op.start_by)
    end
    if op.start == D.leased or (op.start == D.due and op.blocked == '') then best = min_set(best, op.start_at) end
  end
  if owed(op.cancel) then best = min_set(best, op.cancel_at) end
  if owed(op.callback) then best = min_set(best, op.callback_at) end
  if op.state >= S.succeeded then
    if op.children == 2 then return op.closed_at end
    if not owed(op.cancel) and not owed(op.callback) then
      -- A dead letter can be read and sent again for a while, also when its tries outlasted the retention (P71).
      local at = op.closed_at + op.retention_ms
      if op.cancel == D.dead then at = math.max(at, op.cancel_at + LIMIT.dead_ms) end
      if op.callback == D.dead then at = math.max(at, op.callback_at + LIMIT.dead_ms) end
      return at
    end
  end
  return best
end

-- When to look at it. What no time wakes stands behind all that has one, in the order of acceptance: at the end of a sorted
-- set a place costs a third of one among thousands of equals.
local function timer_at(op)
  local at = earliest(op)
  return at == INF and op.created_at + LIMIT.never or at
end

local function timer_key(root, owner)
  if owner == '' then return root .. KEY.due end
  return root .. KEY.held .. owner
end

local wake_parent -- durable.lua; it saves another operation

-- Writes the head, moves the one timer entry and the waiting entry to where the record says they belong.
local function save(op, ...)
  local root = op.root
  if op.start ~= D.leased and op.cancel ~= D.leased and op.callback ~= D.leased then op.owner = '' end
  if op.gather then touch(op.gather, op.id) end
  op.packed = encode_head(op)
  redis.call('HSET', root .. KEY.operation .. op.id, 'h', op.packed, ...)
  if op.was_owner and op.was_owner ~= op.owner then
    take(op.gather, timer_key(root, op.was_owner), op.id)
  end
  put(op.gather, timer_key(root, op.owner), timer_at(op), op.id)
  if op.blocked ~= '' or op.was_blocked ~= '' then move_line(op) end
  if op.ended_child then wake_parent(op, select(2, ...)) end
end

-- An attempt whose gateway was lost before the agent's answer was booked, and whose agent was told by a heartbeat that it
-- has it (P476): nobody holds its request, and the lease of the heartbeat is the timer.
local function kept(op)
  return op.start == D.leased and op.owner == ''
end

-- Until then the agent has the attempt.
local function beaten(op, now, beat_ms)
  op.beat_by = now + beat_ms
  if kept(op) then op.start_at = op.beat_by end
end

local function tell(op)
  redis.call('PUBLISH', op.root .. CHANNEL.operation .. op.id, op.seq .. ' ' .. op.state)
end

-- Attempts ----------------------------------------------------------------------------------------------------------

-- Attempts that count against attempts_max: going on with suspended work is none.
local function spent(op)
  return op.attempt - op.resumes - (op.suspended > 0 and 1 or 0)
end

local function next_attempt(op)
  op.attempt = op.attempt + 1
  if op.suspended > 0 then op.suspended, op.resumes = 0, op.resumes + 1 end
  -- The start itself says that a cancel was asked.
  if op.cancel_asked == 1 and owed(op.cancel) then apply_delivery(op, 'cancel', 'drop') end
end

-- Takes a slot of the endpoint and the start lease for `session`. The caller has checked `hindrance`.
local function dispatch(op, ep, session, now)
  apply(op, 'dispatch')
  apply_delivery(op, 'start', 'lease')
  op.blocked = ''
  op.owner = session
  next_attempt(op)
  op.start_at = now + op.lease_ms
  -- Below zero: an earlier attempt was leased, this one is not yet. Tokens of the earlier one stay fenced (P55).
  if op.beat_ms > 0 then op.beat_ms = -op.beat_ms end
  op.beat_by = 0
  op.instance = ''
  take_place(op, ep, now)
  emit(op, E.dispatched, now)
end

-- '' or the endpoint id, when operations wait for the slot that was just freed: the caller's gateway looks at once
-- instead of at its next tick. '*' when it is to look for another reason: a parent was made due.
local function waiting_line(op)
  if op.woke then return '*' end
  if op.awaited and redis.call('EXISTS', op.root .. KEY.turns .. op.endpoint) == 1 then return op.endpoint end
  return ''
end

-- Ends -----------------------------------------------------------------------------------------------------------

local function lease_callback(op, session, now, lease_ms)
  apply_delivery(op, 'callback', 'lease')
  op.owner = session
  op.callback_at = now + lease_ms
  op.callback_tries = op.callback_tries + 1
end

local function lease_cancel(op, session, now, lease_ms)
  apply_delivery(op, 'cancel', 'lease')
  op.owner = session
  op.cancel_at = now + lease_ms
  op.cancel_tries = op.cancel_tries + 1
end

-- Owes the agent a cancel, and leases it to `session` if that is alive. Returns whether it did.
local function owe_cancel(op, session, now, lease_ms)
  if apply_delivery(op, 'cancel', 'owe') ~= 'moved' then return false end
  op.cancel_at = now
  if not listed(op.root, session) then return false end
  lease_cancel(op, session, now, lease_ms)
  return true
end

-- Everything that follows from reaching a terminal state, whatever the way. `apply` has moved op.state already.
local function settle(op, now, code, detail, instance)
  op.closed_at = now
  op.blocked = ''
  op.beat_by = 0
  op.suspended = 0
  if op.parent ~= '' then op.ended_child = true end
  if op.children == 1 then op.children = 2 end
  if owed(op.start) then apply_delivery(op, 'start', 'drop') end
  if op.state ~= S.timed_out and owed(op.cancel) then
    apply_delivery(op, 'cancel', 'drop')
  end
  free_slot(op)
  if op.delay_ms > 0 and op.attempt == 0 then
    redis.call('ZREM', op.root .. KEY.later .. op.endpoint .. ':' .. op.namespace, op.id)
  end
  emit(op, code, now, detail, nil, instance)
  if op.wants_callback > 0 then
    apply_delivery(op, 'callback', 'owe')
    op.callback_at = now
  end
end

-- Digests of the idempotency key and of what was sent: the first of `q` (layout.Content), which is never read whole here.
local function digests_of(content)
  local _, key, digest = cmsgpack.unpack_limit(content, 2, 1)
  return key, digest
end

local function purge(op)
  local root = op.root
  local record = root .. KEY.operation .. op.id
  -- Of what cannot be read the key stays; it leads to nothing then, and whoever comes with it takes it.
  local sound, key = pcall(digests_of, redis.call('HGET', record, 'q'))
  local claimed = sound and key ~= '' and root .. KEY.idempotency .. key
  if claimed and redis.call('GET', claimed) == op.id then redis.call('DEL', record, claimed) else redis.call('DEL', record) end
  if op.journal == 1 or op.children > 0 then
    for _, kind in ipairs({ KEY.journal, KEY.stream, KEY.children, KEY.unfinished }) do redis.call('DEL', root .. kind .. op.id) end
  end
  if op.parent ~= '' then redis.call('ZREM', root .. KEY.children .. string.match(op.parent, '^[^.]*'), op.id) end
  redis.call('ZREM', root .. KEY.index .. op.namespace, op.id)
  if op.cancel == D.dead or op.callback == D.dead then
    redis.call('ZREM', root .. KEY.dead .. op.namespace, op.id .. '.' .. op.run .. '.callback', op.id .. '.' .. op.run .. '.cancel')
  end
  redis.call('ZREM', timer_key(root, op.owner), op.id)
end

-- One piece of work for a courier: {id, kind, head, request, extra [, entries in its journal [, links of its 201]]}.
-- `extra` is the input of a start (where it lies apart), the outcome of a callback, the agent's token of a cancel.
local function work(op, kind)
  local extra = kind == 'start' and 'i' or kind == 'callback' and 'r' or 't'
  local fields = redis.call('HMGET', op.root .. KEY.operation .. op.id, 'h', 'q', extra, 'l')
  local piece = { op.id, kind, fields[1], fields[2], fields[3] or '' }
  if op.journal == 1 then piece[6] = redis.call('LLEN', op.root .. KEY.journal .. op.id) end
  if fields[4] then
    piece[6] = piece[6] or 0
    piece[7] = fields[4]
  end
  return piece
end
