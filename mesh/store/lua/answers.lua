-- answers: what became of many attempts and deliveries, in one step.
-- Keys: partition root. Arguments: a letter for each, c(omplete), r(etry), b (release: "back"), s(tarted), d(elivered); then for
--   each its arguments, as many and as they are when it is called alone.
-- Reply: per answer the verb's own reply, or {'refused', 'MESH_WORD detail'}, or {'broken', why}, or the place of the reply
--   that it has too. A record that cannot be read must not keep the answers of all others from being booked. Flag allow-oom.
local function mesh1_answers(keys, argv)
  local others = { r = mesh1_retry, b = mesh1_release, s = mesh1_started, d = mesh1_delivered }
  local lengths = { c = 3, r = 2, b = 2, s = 3, d = 1 }
  local replies, gather, at = {}, gathering(now_ms()), 2
  assert(not string.find(argv[1], '[^crbsd]'), 'there is no such answer')
  for position = 1, #argv[1] do
    gather.place = position
    local letter = string.sub(argv[1], position, position)
    local after = at + lengths[letter]
    if letter == 'c' then
      replies[position] = each(pcall(complete_one, keys[1], gather, unpack(argv, at, after - 1)))
    else
      replies[position] = each(pcall(others[letter], keys, { unpack(argv, at, after - 1) }, gather))
    end
    at = after
  end
  put_all(gather)
  return replies
end
