-- start_many: many starts in one step, each on its own: what one is refused for stops no other. One fsync for all.
-- Keys: partition root. Arguments: their number, for each start its three, as in start.lua. None of them is leased to anybody here.
-- Reply: for each, in order, what start replies, or {'refused', word and detail}. Flags as start.
local function mesh1_start_many(keys, argv)
  local replies, gather = {}, gathering(now_ms())
  for at = 2, #argv, 3 do
    -- What cannot be run is refused before its first write, and those before it are written already.
    local sound, reply = pcall(mesh1_start, keys, { argv[at], argv[at + 1], argv[at + 2] }, gather)
    if not sound then
      reply = { 'refused', 'FAULT ' .. tostring(reply) }
    elseif reply.err then
      reply = { 'refused', (string.gsub(reply.err, '^%-?MESH_', '')) }
    end
    replies[#replies + 1] = reply
  end
  put_all(gather)
  return replies
end
