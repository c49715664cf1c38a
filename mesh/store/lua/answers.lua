-- answers: what agents say about many attempts, in one step.
-- Keys: partition root. Arguments: msgpack {verbs = 'complete', 'retry' or 'release' of each}, then for each its packed
--   arguments and its payload or '', as they are when it is called alone.
-- Reply: per answer the verb's own reply, or {'refused', 'MESH_WORD detail'}, or {'broken', why}: a record that cannot be
--   read must not keep the answers of all others from being booked. Flag allow-oom.
local function mesh1_answers(keys, argv)
  local verbs = { complete = mesh1_complete, retry = mesh1_retry, release = mesh1_release }
  local wanted, replies = given(argv[1], 'verbs').verbs, {}
  for _, verb in ipairs(wanted) do
    assert(verbs[verb], 'there is no such answer')
  end
  for position, verb in ipairs(wanted) do
    local sound, reply = pcall(verbs[verb], keys, { argv[2 * position], argv[2 * position + 1] })
    if not sound then
      reply = { 'broken', tostring(type(reply) == 'table' and reply.err or reply) }
    elseif reply.err then
      reply = { 'refused', reply.err }
    end
    replies[position] = reply
  end
  return replies
end
