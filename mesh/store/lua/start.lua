-- start: accept an operation and take its first dispatch lease in one step.
-- Keys: partition root. Arguments: msgpack {ns, endpoint, session, close_ms, start_ms, run_ms, lease_ms, attempts_max,
--   retention_ms, callback, blocked [, pin, priority]}, which many have alike (`remembered`), id, key, `q` (layout.Content) [, `i`]
--   [, instance, lease ms [, '1': it has a version]: it polls at the caller's for this endpoint of kind pull and gets the
--   attempt; of pinned work the caller knows that it fits].
--   One that begins later has {delay_ms} or {starts_at}: it becomes due then. Nobody leases it now, be that at once.
--   A child also has {parent, parent_run, parent_attempt, parent_key, parent_close (1: canceled when the parent ends first)}.
-- Reply: {'accepted', time of acceptance, attempt (1: leased to `session`, which sends it; 0: nothing to send), blocked
--     [, 1: the attempt is `instance`'s, else 0, close_by of a child [, how many more of its namespace may wait]]}
--     or {'replayed', now, id, state}
-- Refuses: KEY_REUSED id, OTHER_PARENT id (the key is of an operation that this call of the parent did not start), NO_ENDPOINT,
--   NO_SESSION, PARENT_LOST (its attempt was given up, or it ended), BACKLOG depth cap ms [1: of what is accepted for later]
--   (turns.lua; a repeat of what was accepted is answered all the same).
-- Effects: record, key, index, timer, events accepted [+ dispatched].
-- The link sends a call again when its reply was lost, so the same id answers as the first time did, except that an
--   attempt which was taken from this session meanwhile, or has ended, is no longer its to send.
-- Admission: refused by the server itself when memory is full (no allow-oom flag).

-- Makes `op` a child of the attempt that names itself. Returns the parent, or '' when that attempt may start nothing.
local function child_of(op, a)
  local parent = load(op.root, a.parent)
  local why = not parent and 'unknown'
    or fenced(a.parent_run, a.parent_attempt, parent.run, parent.attempt, parent.state, parent.start)
  if why then
    local late = why == 'lost' and a.parent_run == parent.run and parent.suspended == 0
    if late and show_refused(parent, a.parent_attempt, op.created_at, 'call') then save(parent) end
    return ''
  end
  -- What its parent waits for is as urgent as the parent.
  op.priority = math.max(op.priority, parent.priority)
  op.parent, op.parent_key = a.parent .. '.' .. a.parent_run, a.parent_key
  local _ = #a.parent_key + a.parent_close
  -- A child has no more time than what is left of its parent's.
  if parent.close_by > 0 then op.close_by = min_set(op.close_by > 0 and op.close_by or INF, parent.close_by) end
  return parent
end

local function adopt(parent, op, close)
  redis.call('ZADD', op.root .. KEY.children .. parent.id, op.created_at, op.id)
  if close == 1 then redis.call('SADD', op.root .. KEY.unfinished .. parent.id, op.id) end
  if parent.children == 0 then
    parent.children = 1
    save(parent)
  end
end

local function accepted(op, attempt, fetched, room)
  local reply = { 'accepted', op.created_at, attempt, op.blocked }
  if fetched or room or op.parent ~= '' then reply[5], reply[6] = fetched and 1 or 0, op.close_by end
  reply[7] = room
  return reply
end

-- One that nobody takes at once is not counted before it is dispatched: where that is limited it joins the line, which is.
local function counted_limit(ep, namespace)
  local share = share_of(ep, namespace)
  if ep.max > 0 then return 'concurrency' end
  if ep.rate > 0 then return 'rate' end
  return share and share.max > 0 and 'namespace_concurrency' or share and share.rate > 0 and 'namespace_rate' or ''
end

local accepted_first

-- The first event of every operation is the same.
local function accepted_event()
  accepted_first = accepted_first or cmsgpack.pack({ E.accepted, 0, 0 })
  return accepted_first
end

-- Endpoint and session are read once for all starts of a `gather`: what a dispatch changes of an endpoint it changes in what
-- was read as well, and no start changes a session.
local function endpoint_known(root, endpoint, gather)
  if not gather then return endpoint_of(root, endpoint) end
  if gather.endpoints[endpoint] == nil then gather.endpoints[endpoint] = endpoint_of(root, endpoint) or false end
  return gather.endpoints[endpoint] or nil
end

local function session_known(root, session, gather)
  if not gather then return listed(root, session) end
  if gather.sessions[session] == nil then gather.sessions[session] = listed(root, session) end
  return gather.sessions[session]
end

local start_arguments = remembered('ns', 'endpoint', 'session', 'close_ms', 'start_ms', 'run_ms', 'lease_ms', 'attempts_max',
  'retention_ms', 'callback', 'blocked')

local known_start, note_start = memory()

-- One more attempt of it may go out as long as nobody counts them.
local function limited(ep)
  return ep.shares or ep.max > 0 or ep.rate > 0
end

-- What a start with these arguments becomes, where an earlier one differs from it in nothing but id, key and content, and no
-- limit counts them: the same head, lease and reply. Of what agents fetch it is the same only where the same one of them gets
-- it; of what waits, only in the same call, and where it enters its line with all others (`apart`).
local function like_start(root, gather, packed, instance, lease_ms)
  local like = like_in(gather, packed, instance)
  if like then return like.lease_ms == lease_ms and like or nil end
  like = known_start(packed, instance)
  if not like or like.lease_ms ~= lease_ms or like.root ~= root then return nil end
  local a, now = start_arguments(packed), gather and gather.now or now_ms()
  local ep = endpoint_known(root, a.endpoint, gather)
  if not ep or ep.pull ~= like.pull or limited(ep) or hindrance(ep, now) ~= '' then return nil end
  if not session_known(root, a.session, gather) then return nil end
  like.head, like.at, like.since = like.frame .. struct.pack('>I8', now) .. like.way, now + like.after, now
  like.fetched, like.place = like.pull and (a.close_ms > 0 and now + a.close_ms or 0), nil
  note_in(gather, packed, instance, like)
  return like
end

-- Accepts one more. Nil where the key or the operation is known.
local function start_alike(root, gather, like, id, key, content, input)
  local _ = #id + #key + #content -- a missing argument fails here, before the first write
  local record = root .. KEY.operation .. id
  local new = gather and gather.fresh
  if not new and key ~= '' then
    if redis.call('SETNX', root .. KEY.idempotency .. key, id) == 0 then return nil end
  elseif not new and redis.call('EXISTS', record) == 1 then
    return nil
  end
  if gather then touch(gather, id) end
  if input ~= '' then
    redis.call('HSET', record, 'h', like.head, 'q', content, 'i', input)
  else
    redis.call('HSET', record, 'q', content, 'h', like.head)
  end
  put(gather, like.timers, like.at, id)
  put(gather, like.index, like.since, id)
  local op = like.waits
  if op then enter_line(op, op.endpoint, id) end
  if like.place then return like.place end
  like.place = gather and gather.place
  local reply = { 'accepted', like.since, 1, '' }
  if like.fetched then reply[5], reply[6] = 1, like.fetched end
  return reply
end

-- Notes what `op`, which was just accepted, is to those that come next.
local function note_start_of(gather, packed, instance, lease_ms, op, ep)
  local at = timer_at(op)
  local like = {
    root = op.root, frame = frame_of(op.packed), way = way_of(op.packed), after = at - op.created_at, pull = ep.pull,
    head = op.packed, at = at, since = op.created_at, lease_ms = lease_ms, timers = timer_key(op.root, op.owner),
    index = op.root .. KEY.index .. op.namespace, waits = op.blocked ~= '' and op, place = gather and gather.place,
  }
  note_in(gather, packed, instance, like)
  if op.attempt > 0 then note_start(packed, instance, like) end
end

local function start_one(root, gather, packed, id, key, content, input, instance, lease_ms, counted)
  -- A missing argument fails here, before the key is claimed below.
  local _ = #id + #key + #content
  input = input or ''
  local like = not counted and like_start(root, gather, packed, instance or '', lease_ms)
  local same = like and start_alike(root, gather, like, id, key, content, input)
  if same then return same end
  local a = start_arguments(packed)
  local now = gather and gather.now or now_ms()
  local delay_ms = a.delay_ms or (a.starts_at and math.max(a.starts_at - now, 0))
  local begins = now + (delay_ms or 0)
  local op = blank_head(id, root)
  op.gather = gather or false
  op.events = accepted_event()
  op.state, op.run, op.seq, op.created_at = S.scheduled, 1, 1, now
  op.start, op.start_at = D.due, begins
  op.wants_callback = a.callback
  if a.close_ms > 0 then op.close_by = begins + a.close_ms end
  if a.start_ms > 0 then op.start_by = begins + a.start_ms end
  op.run_ms, op.lease_ms, op.attempts_max, op.retention_ms = a.run_ms, a.lease_ms, a.attempts_max, a.retention_ms
  op.endpoint, op.namespace = a.endpoint, a.ns
  op.delay_ms, op.pin, op.priority = delay_ms or 0, a.pin or '', a.priority or 0
  local poll_lease_ms = instance and assert(tonumber(lease_ms))

  local parent = a.parent and child_of(op, a)
  if parent == '' then return refuse('PARENT_LOST', a.parent) end

  local ep = endpoint_known(root, a.endpoint, gather)
  local hindered = not ep or ep.gone or not session_known(root, a.session, gather)
  local reason, full, room = '', nil, nil
  if not hindered then
    reason = hindrance_outside(ep, a.ns, now)
    if reason == '' then reason = a.blocked end
    if reason == '' and ep.pull and (delay_ms or not instance) then reason = 'busy' end
    if reason == '' and delay_ms then reason = counted_limit(ep, a.ns) end
    if ep.shares then full, room = backlog(ep, a.ns, a.pin ~= '' and a.pin, now, gather) end
    if delay_ms then room = nil end
    if begins > now then reason = '' end
    full = (delay_ms or reason ~= '') and full
    if not full and begins > now and ep.shares then full = later_full(ep, a.ns, now) end
  end
  -- One call claims the key or finds who has it; a start that is refused below must not claim it.
  local known
  if gather and gather.fresh then
    known = false
  elseif key == '' then
    known = id
  elseif hindered or full then
    known = redis.call('GET', root .. KEY.idempotency .. key)
  else
    known = redis.call('SET', root .. KEY.idempotency .. key, id, 'NX', 'GET')
  end
  local earlier = known and load(root, known)
  if earlier then
    if known == id then
      -- Of one that became due by itself somebody else took the attempt: a claim or a pull, which brought the work.
      if delay_ms then return accepted(earlier, 0) end
      local fetched = instance and earlier.instance == instance and held(earlier)
      if fetched then
        -- It may have waited, and then the instance fetched it elsewhere: that poll brought it.
        local _, second = cmsgpack.unpack(earlier.events)
        fetched = second[1] ~= E.blocked
      end
      local mine = earlier.attempt == 1 and (fetched or (earlier.start == D.leased and earlier.owner == a.session))
      return accepted(earlier, mine and 1 or 0, fetched)
    end
    local _, digest = digests_of(content)
    local _, digest_before = digests_of(redis.call('HGET', root .. KEY.operation .. known, 'q'))
    if digest ~= digest_before then return refuse('KEY_REUSED', known) end
    -- Its end is told to whoever started it; this call would wait for it for ever.
    local stranger = parent and (earlier.parent ~= op.parent or earlier.parent_key ~= op.parent_key)
    if stranger then return refuse('OTHER_PARENT', known) end
    -- The repeat may be answered 201, here or by another gateway: from now on the callback is owed whatever the first
    -- request is answered.
    if earlier.state < S.succeeded and earlier.wants_callback == 1 then
      earlier.wants_callback = 2
      save(earlier)
    end
    return { 'replayed', now, known, earlier.state }
  end
  if not ep or ep.gone then return refuse('NO_ENDPOINT', a.endpoint) end
  if hindered then return refuse('NO_SESSION', a.session) end
  if full then return refuse('BACKLOG', table.concat(full, ' ')) end
  if known and key ~= '' then redis.call('SET', root .. KEY.idempotency .. key, id) end

  if reason ~= '' then
    op.blocked = reason
    if room then room = room - 1 end
    emit(op, E.blocked, now, reason)
    if ep.pull then call_pollers(op) end
  elseif not delay_ms and ep.pull then
    hand_out(op, ep, instance, poll_lease_ms, counted, now)
  elseif not delay_ms then
    dispatch(op, ep, a.session, now)
  end
  if begins > now and ep.shares then note_later(op, ep) end
  put(gather, root .. KEY.index .. a.ns, now, id)
  if parent then adopt(parent, op, a.parent_close) end
  if input ~= '' then
    save(op, 'q', content, 'i', input)
  else
    save(op, 'q', content)
  end
  local reply = accepted(op, op.attempt, op.instance ~= '', room)
  local alike = op.attempt == 1 or (gather and gather.apart and not ep.pull)
  -- No child, nothing pinned, counted or for later: such heads are longer.
  if alike and not limited(ep) and head_is_short(op) then
    note_start_of(gather, packed, instance or '', lease_ms, op, ep)
  end
  return reply
end

local function mesh1_start(keys, argv)
  return start_one(keys[1], nil, unpack(argv))
end
