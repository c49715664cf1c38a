-- What the verbs of durable work share: the fence, refusals that are shown, a child's end in its parent's journal.

-- Why an agent with the token of `run` and `attempt` may not act for the operation, or nil.
local function fenced(run, attempt, op_run, op_attempt, state, start)
  if run ~= op_run or attempt ~= op_attempt then return 'lost' end
  if state >= S.succeeded then return 'ended' end
  if state == S.backing_off or start == D.due then return 'lost' end
  return nil
end

-- A late step or outcome of an attempt that was given up is shown once per attempt. Returns whether there is news to save.
local function show_refused(op, attempt, now, verb)
  if attempt <= op.refused or op.seq >= LIMIT.events then return false end
  op.refused = attempt
  emit(op, E.refused, now, verb, attempt)
  return true
end

-- The head alone, as it is packed (fields by H), or nil; one that cannot be read must not stop others.
local function head_of(root, id)
  local packed = redis.call('HGET', root .. KEY.operation .. id, 'h')
  if not packed then return nil end
  local sound, h = pcall(decode_head, packed)
  return sound and h or nil
end

-- The handler of the parent may still have to read what its journal only names: the child is kept for it.
local function read_later(child)
  if child.parent == '' or redis.call('HEXISTS', child.root .. KEY.operation .. child.id, 'p') == 0 then return false end
  local id, run = string.match(child.parent, '^([^.]*)%.(%d+)$')
  local h = head_of(child.root, id)
  return h and h[H.run] == tonumber(run) and h[H.state] < S.succeeded
end

-- Whether a child that has not ended may still bring the next attempt; of very many it is taken for granted.
local function has_live_child(op)
  if op.children == 0 then return false end
  if redis.call('EXISTS', op.root .. KEY.unfinished .. op.id) == 1 then return true end
  local ids = redis.call('ZRANGE', op.root .. KEY.children .. op.id, 0, LIMIT.children_seen - 1, 'REV')
  for _, id in ipairs(ids) do
    local h = head_of(op.root, id)
    if h and h[H.state] < S.succeeded then return true end
  end
  return #ids == LIMIT.children_seen
end

-- A packed outcome (layout.Outcome) that only refers to its result ends with that: a SHA-256 in hex and a number. cmsgpack
-- does not read the bytes in front of it. What looks like it and is none is kept for longer than it need be, and no harm done.
local function refers(outcome)
  return string.find(outcome, '\217@' .. string.rep('%x', 64), -(2 + 64 + 9)) ~= nil
end

-- A child ended: its parent's journal gets an entry with its packed outcome, and a parent that is suspended goes on.
-- A parent of another run, or one that ended, has no use for it. What is too large to be kept twice is left out; whoever
-- reads the journal finds it with the child, which is kept for that, as for a result that is only referred to.
wake_parent = function(child, outcome)
  local root, now = child.root, child.closed_at
  local id, run = string.match(child.parent, '^([^.]*)%.(%d+)$')
  redis.call('SREM', root .. KEY.unfinished .. id, child.id)
  local h = head_of(root, id)
  if not h or h[H.run] ~= tonumber(run) or h[H.state] >= S.succeeded then return end
  local key = root .. KEY.journal .. id
  local _, after, total = journal_end(root, id)
  local body = outcome
  local left_out = #body > LIMIT.page_bytes or total + #body > LIMIT.journal_bytes
  if left_out then body = '' end
  if left_out or refers(body) then redis.call('HSET', root .. KEY.operation .. child.id, 'p', 1) end
  redis.call('RPUSH', key,
    struct.pack(LINE, 1, math.max(after, h[H.stamp], now - h[H.created_at]), h[H.attempt], total + #body)
      .. struct.pack('>BBI2', child.state, #child.id, #child.parent_key) .. child.id .. child.parent_key .. body)
  -- Of hundreds of children of one that runs none costs it its record.
  if h[H.suspended] > 0 or h[H.journal] == 0 then
    local parent = load(root, id)
    parent.gather = child.gather
    parent.journal = 1
    if parent.suspended > 0 then
      if parent.start_at == 0 or parent.start_at > now then parent.start_at = now end
      child.woke = true
    end
    save(parent)
  end
  redis.call('PUBLISH', root .. CHANNEL.operation .. id, 'journal')
end
