-- start_many: many starts in one step, each on its own: what one is refused for stops no other. One fsync for all.
-- Keys: partition root. Arguments: how many arguments each start has, a digit for each; '1' where none of them is leased to
--   anybody here (a batch), else ''; and those of all starts, as in start.lua.
-- Reply: for each, in order, what start replies, or {'refused', 'MESH_WORD detail'}, or {'broken', why}. Flags as start.
local function mesh1_start_many(keys, argv)
  local replies, gather, at = {}, gathering(now_ms(), argv[2] == '1'), 3
  for position = 1, #argv[1] do
    local after = at + string.byte(argv[1], position) - 48
    -- What cannot be run is refused before its first write, and those before it are written already.
    replies[position] = each(pcall(start_one, keys[1], gather, unpack(argv, at, after - 1)))
    at = after
  end
  put_all(gather)
  return replies
end
