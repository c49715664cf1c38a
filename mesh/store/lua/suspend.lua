-- suspend: handlers that wait give their attempts up; a time, a child's end or a cancel brings the next one.
-- Keys: partition root. Arguments: msgpack {tasks = {{id, run, attempt, at, wake_in_ms, wake_at_ms, cancel}, ...}}.
--   `at`: how many journal entries the agent knows of. `wake_at_ms` by the store's clock, or else `wake_in_ms` from now; both
--   0: no time wakes it. `cancel` 1: the agent knows that its end is wanted.
-- Reply: {now, {status, length, cancel asked, line}, ...}. 'ok' (also for a repeat); 'grown': a child ended or a cancel came
--   that the agent does not know of, so nothing was done, else that would be slept through; 'lost', 'unknown'; 'ended', also
--   by this: canceled, since its end is wanted and neither a time nor a child would wake it.
-- Flag allow-oom.
local function suspend(op, task, length, now)
  local again = op.suspended > 0 and op.run == task.run and op.attempt == task.attempt and op.state < S.succeeded
  if again then return 'ok' end
  local why = fenced(task.run, task.attempt, op.run, op.attempt, op.state, op.start)
  if why then
    if why == 'lost' and task.run == op.run and op.suspended == 0 and show_refused(op, task.attempt, now, 'suspend') then save(op) end
    return why
  end
  if length ~= task.at or (op.cancel_asked == 1 and task.cancel == 0) then return 'grown' end
  -- Its 201 may be on its way to be booked.
  if op.state == S.scheduled then
    apply(op, 'start')
    emit(op, E.started, now)
  end
  if op.cancel_asked == 1 and task.wake_at_ms == 0 and task.wake_in_ms == 0 and not has_live_child(op) then
    -- It knows that its end is wanted, and nothing is left that could bring the next attempt.
    apply(op, 'cancel')
    settle(op, now, E.canceled)
    op.woke = true
    save(op, 'r', cmsgpack.pack({ 'mesh', 'canceled_waiting' }))
    tell(op)
    return 'ended'
  end
  apply(op, 'suspend')
  op.journal, op.suspended = 1, now
  op.start, op.start_by, op.finish_by, op.beat_by = D.due, 0, 0, 0
  op.start_at = task.wake_at_ms > 0 and task.wake_at_ms or task.wake_in_ms > 0 and now + task.wake_in_ms or 0
  free_slot(op)
  emit(op, E.suspended, now, op.start_at > 0 and op.start_at or nil)
  save(op)
  tell(op)
  return 'ok'
end

local function mesh1_suspend(keys, argv)
  local root = keys[1]
  local a = given(argv[1], 'tasks')
  local now = now_ms()
  for _, task in ipairs(a.tasks) do
    local _ = #task.id + task.run + task.attempt + task.at + task.wake_in_ms + task.wake_at_ms + task.cancel -- before the first write
  end
  local replies = { now }
  for position, task in ipairs(a.tasks) do
    local op = load(root, task.id)
    if op then
      local length = redis.call('LLEN', root .. KEY.journal .. task.id)
      local status = suspend(op, task, length, now)
      replies[position + 1] = { status, length, op.cancel_asked, waiting_line(op) }
    else
      replies[position + 1] = { 'unknown', 0, 0, '' }
    end
  end
  return replies
end
