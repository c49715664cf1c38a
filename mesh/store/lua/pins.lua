-- Pinned work and who runs what: the line that an operation waits in, and how many of an instance's attempts are out.
-- Loaded before the prelude, so that `save` and `free_slot` can call it. `pin` is '', 'v' .. version (a caller's), or
-- 'c' .. instance (a canary's).

-- What waits for its version has a line of its own: at the head of the endpoint's it would stand in everybody's way.
-- `busy`: agents of that version fetch their work, and have no seat free. Whatever else it waits for, it does with all others.
local function line_of(op, reason)
  local apart = op.pin ~= '' and (reason == 'no_version' or reason == 'busy')
  return apart and op.endpoint .. '|' .. op.pin or op.endpoint
end

local function move_line(op)
  local before = op.was_blocked ~= '' and line_of(op, op.was_blocked)
  local after = op.blocked ~= '' and line_of(op, op.blocked)
  if before == after then return end
  if before then
    leave_line(op.root, before, op.namespace, op.id, op.cost or 0)
    if before ~= op.endpoint and redis.call('EXISTS', op.root .. KEY.waiting .. before) == 0 then
      redis.call('SREM', op.root .. KEY.pins .. op.endpoint, op.pin)
    end
  end
  if after then
    enter_line(op, after, op.id)
    if after ~= op.endpoint then redis.call('SADD', op.root .. KEY.pins .. op.endpoint, op.pin) end
  end
end

-- An attempt is out at `instance`. Only those of instances with a version are counted: two calls less for all others.
local function count_at(op, instance)
  op.counted = instance
  redis.call('HINCRBY', op.root .. KEY.running .. op.endpoint, instance, 1)
end

uncount = function(op)
  local key = op.root .. KEY.running .. op.endpoint
  if redis.call('HINCRBY', key, op.counted, -1) <= 0 then redis.call('HDEL', key, op.counted) end
  op.counted = ''
end
