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

-- A child ended: its parent's journal gets an entry with its packed outcome, and a parent that is suspended goes on.
-- A parent of another run, or one that ended, has no use for it. What is too large to be kept twice is left out; whoever
-- reads the journal finds it with the child.
wake_parent = function(child, outcome)
  local root, now = child.root, child.closed_at
  local id, run = string.match(child.parent, '^([^.]*)%.(%d+)$')
  redis.call('SREM', root .. KEY.unfinished .. id, child.id)
  local sound, parent = pcall(load, root, id)
  if not sound or not parent or parent.run ~= tonumber(run) or parent.state >= S.succeeded then return end
  local _, after, total = journal_end(parent)
  local body = outcome
  if #body > LIMIT.page_bytes or total + #body > LIMIT.journal_bytes then body = '' end
  redis.call('RPUSH', root .. KEY.journal .. id,
    struct.pack(LINE, 1, math.max(after, parent.stamp, now - parent.created_at), parent.attempt, total + #body)
      .. struct.pack('>BBI2', child.state, #child.id, #child.parent_key) .. child.id .. child.parent_key .. body)
  if parent.suspended > 0 then
    if parent.start_at == 0 or parent.start_at > now then parent.start_at = now end
    child.woke = true
  end
  if parent.suspended > 0 or parent.journal == 0 then
    parent.journal = 1
    save(parent)
  end
  tell(parent)
end
