-- heartbeat: agents renew the leases of running attempts, many in one step.
-- Keys: partition root. Arguments: msgpack {tasks = {{id, run, attempt, lease_ms, details?}, ...}}, then the details that
--   tasks point to: 1 is the first of them.
-- Reply: one of 'ok', 'cancel' (ok, and the caller asked to cancel), 'lost' (superseded), 'ended', 'unknown' per task.
-- The first heartbeat makes an attempt leased: from then on its token is fenced by attempt (P55). Flag allow-oom.
local function mesh1_heartbeat(keys, argv)
  local root = keys[1]
  local a = given(argv[1], 'tasks')
  local now = now_ms()
  local replies = {}
  for _, task in ipairs(a.tasks) do
    local _ = #task.id + task.run + task.attempt + task.lease_ms -- all of them, before the first write
  end
  for position, task in ipairs(a.tasks) do
    local op = load(root, task.id)
    local reply
    if not op then
      reply = 'unknown'
    else
      reply = fenced(task.run, task.attempt, op.run, op.attempt, op.state, op.start)
    end
    if not reply then
      local lease_ms = task.lease_ms > 0 and task.lease_ms or math.abs(op.beat_ms)
      op.beat_ms = lease_ms > 0 and lease_ms or LIMIT.beat_ms
      beaten(op, now, op.beat_ms)
      local details = task.details and argv[task.details + 1]
      if details then
        save(op, 'b', struct.pack(LINE, 0, math.max(0, now - op.created_at), op.attempt, #details) .. details)
      else
        save(op)
      end
      reply = op.cancel_asked == 1 and 'cancel' or 'ok'
    end
    replies[position] = reply
  end
  return replies
end
