-- answers: what became of many attempts and deliveries, in one step.
-- Keys: partition root. Arguments: a letter for each, c(omplete), r(etry), b (release: "back"), s(tarted), d(elivered); then for
--   each its arguments, as many and as they are when it is called alone. C: a completion whose first argument is that of the
--   completion before it, and left out.
-- Reply: per answer the verb's own reply, or {'refused', 'MESH_WORD detail'}, or {'broken', why}, or the place of the reply
--   that it has too. A record that cannot be read must not keep the answers of all others from being booked. Flag allow-oom.
local OTHERS = { r = mesh1_retry, b = mesh1_release, s = mesh1_started, d = mesh1_delivered }
local LENGTHS = { r = 2, b = 2, s = 3, d = 1 }

local function mesh1_answers(keys, argv)
  local root, replies, gather, at, first, before = keys[1], {}, gathering(now_ms()), 2, nil, nil
  assert(not string.find(argv[1], '[^cCrbsd]'), 'there is no such answer')
  for position = 1, #argv[1] do
    gather.place = position
    local letter = string.sub(argv[1], position, position)
    local length = LENGTHS[letter]
    if length then
      replies[position] = each(pcall(OTHERS[letter], keys, { unpack(argv, at, at + length - 1) }, gather))
      at = at + length
    else
      if letter == 'c' then first, at = argv[at], at + 1 end
      local sound, reply = pcall(complete_one, root, gather, first, argv[at], argv[at + 1])
      if reply ~= before then reply = each(sound, reply) end
      replies[position], before = reply, reply
      at = at + 2
    end
  end
  put_all(gather)
  return replies
end
