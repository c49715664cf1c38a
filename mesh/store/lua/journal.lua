-- append / pages: what a handler did, kept in the order in which it said so, and read again by its next attempt.
-- Lua never looks into an element's body. `journal` holds the entries, `stream` the chunks that it emits for readers.

local function list_of(root, into, id)
  return root .. KEY[into] .. id
end

-- The elements from `at` on are this task's own, byte for byte: its earlier call whose reply was lost.
local function repeated(key, task, argv, first)
  local there = redis.call('LRANGE', key, task.at, task.at + task.count - 1)
  if #there < task.count then return false end
  for number, element in ipairs(there) do
    local about_child, _, attempt = struct.unpack(LINE, element)
    if about_child == 1 or attempt ~= task.attempt or string.sub(element, LINE_BYTES + 1) ~= argv[first + number - 1] then return false end
  end
  return true
end

-- Appends argv[first ..] if the list has `task.at` elements. Returns status and length. One read tells whether it has, and
-- what the last one says of time and bytes.
local function extend(key, h, task, argv, first, now, most, bytes_most)
  local at, count = task.at, task.count
  local near = redis.call('LRANGE', key, at > 0 and at - 1 or 0, at)
  if #near ~= (at > 0 and 1 or 0) then
    if count > 0 and repeated(key, task, argv, first) then return 'ok', at + count end
    return 'grown', redis.call('LLEN', key)
  end
  if count == 0 then return 'ok', at end
  local after, total = math.max(h[H.stamp], now - h[H.created_at]), 0
  if at > 0 then
    local _, last, _, bytes = struct.unpack(LINE, near[1])
    after, total = math.max(after, last), bytes
  end
  local elements = {}
  for number = 1, count do
    local body = argv[first + number - 1]
    total = total + #body
    elements[number] = struct.pack(LINE, 0, after, task.attempt, total) .. body
  end
  if at + count > most or total > bytes_most then return 'full', at end
  redis.call('RPUSH', key, unpack(elements))
  return 'ok', at + count
end

-- The first step begins the journal, and any step says that the agent lives: the lease is renewed once a third of it is
-- used up, so that most steps leave the record alone.
local function note_step(root, h, id, now)
  local beat_ms = h[H.beat_ms]
  local out = h[H.state] == S.started or h[H.start] == D.leased
  local renew = beat_ms > 0 and out and h[H.beat_by] - now < beat_ms * 2 / 3
  if h[H.journal] == 1 and not renew then return end
  local op = load(root, id)
  op.journal = 1
  if renew then beaten(op, now, beat_ms) end
  save(op)
end

-- append: journal entries or chunks, of many attempts in one step.
-- Keys: partition root. Arguments: msgpack {into ('journal' | 'stream'), alone, tasks = {{id, run, attempt, at, count}, ...}},
--   then the bodies of all tasks one after the other. `at`: how many elements the agent knows of.
-- Reply: {now, {status, length, cancel asked}, ...}. 'ok' (also for an equal repeat), 'grown' (there is more than it knows:
--   read on and come again), 'full', 'lost' (superseded), 'ended', 'unknown'.
-- A full store refuses it: what grows without end is what it must not take. The agent waits and comes again.
local function mesh1_append(keys, argv)
  local root = keys[1]
  local a = given(argv[1], 'into', 'alone', 'tasks')
  local now = now_ms()
  local journal = a.into == 'journal'
  local most = journal and LIMIT.journal_entries or LIMIT.stream_chunks
  local bytes_most = journal and LIMIT.journal_bytes or LIMIT.stream_bytes
  local heads, bodies = {}, 2
  for position, task in ipairs(a.tasks) do
    bodies = bodies + task.count + 0 * (#task.id + task.run + task.attempt + task.at) -- all of them, before the first write
    heads[position] = head_of(root, task.id) or false
  end
  if bodies ~= #argv + 1 then error('bodies are missing') end
  local replies, first = { now }, 2
  for position, task in ipairs(a.tasks) do
    local h, status, length = heads[position], 'unknown', 0
    if h then
      status = fenced(task.run, task.attempt, h[H.run], h[H.attempt], h[H.state], h[H.start])
      if status == 'lost' and task.run == h[H.run] and h[H.suspended] == 0 then
        local op = load(root, task.id)
        if show_refused(op, task.attempt, now, a.into) then
          save(op)
          tell(op)
        end
      elseif not status then
        status, length = extend(list_of(root, a.into, task.id), h, task, argv, first, now, most, bytes_most)
        if status == 'ok' then
          note_step(root, h, task.id, now)
          if a.alone == 0 then redis.call('PUBLISH', root .. CHANNEL.operation .. task.id, a.into) end
        end
      end
    end
    replies[position + 1] = { status, length, h and h[H.cancel_asked] or 0 }
    first = first + task.count
  end
  return replies
end

-- Elements after the first `after` of a list, until `most` of them or about `room` bytes, but one if there is any.
local function elements_of(key, after, most, room)
  local elements, bytes, from, last = {}, 0, after, after + math.min(most, LIMIT.page_entries) - 1
  while from <= last and bytes < room do
    local some = redis.call('LRANGE', key, from, math.min(from + 63, last))
    for _, element in ipairs(some) do
      if bytes < room then
        bytes = bytes + #element
        elements[#elements + 1] = element
      end
    end
    if #some < 64 then break end
    from = from + 64
  end
  return elements, bytes
end

-- pages: what stands in lists, many in one step.
-- Keys: partition root. Arguments: msgpack {into, lists = {{id, run, attempt, after, limit}, ...}}; `run` 0: anybody reads,
--   nothing is fenced.
-- Reply: {now, {status ('ok', 'lost', 'ended', 'unknown'), cancel asked, entries in the journal, chunks in the stream,
--   created_at, elements}, ...}. About LIMIT.page_bytes in all: behind that, lists come without elements.
local function mesh1_pages(keys, argv)
  local root = keys[1]
  local a = given(argv[1], 'into', 'lists')
  local now = now_ms()
  local replies, room = { now }, LIMIT.page_bytes
  for position, list in ipairs(a.lists) do
    local h = head_of(root, list.id)
    local status = not h and 'unknown'
      or list.run > 0 and fenced(list.run, list.attempt, h[H.run], h[H.attempt], h[H.state], h[H.start])
    if status then
      replies[position + 1] = { status, h and h[H.cancel_asked] or 0, 0, 0, 0, {} }
    else
      local elements, bytes = elements_of(list_of(root, a.into, list.id), list.after, list.limit, room)
      room = room - bytes
      replies[position + 1] = {
        'ok', h[H.cancel_asked], redis.call('LLEN', list_of(root, 'journal', list.id)),
        redis.call('LLEN', list_of(root, 'stream', list.id)), h[H.created_at], elements,
      }
    end
  end
  return replies
end
