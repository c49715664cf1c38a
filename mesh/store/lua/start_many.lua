-- start_many: many starts in one step, each on its own: what one is refused for stops no other. One fsync for all.
-- Keys: partition root. Arguments: how many arguments each start has, a digit for each; '1' where none of them is leased to
--   anybody here (a batch), else ''; and those of all starts, as in start.lua.
-- Reply: for each, in order, what start replies, or {'refused', 'MESH_WORD detail'}, or {'broken', why}, or the place of the
--   reply that it has too. Flags as start.

-- Claims the keys of all starts in one go, where nobody has any of them and no operation is here. Else nothing: whoever comes
-- again must be told from whoever is new, one after the other.
local function claim_all(root, argv)
  local claims, records, seen, at = {}, {}, {}, 3
  for position = 1, #argv[1] do
    local id, key = argv[at + 1], argv[at + 2]
    local one = key ~= '' and key or id
    if not key or seen[one] then return false end
    seen[one] = true
    if key ~= '' then
      claims[#claims + 1], claims[#claims + 2] = root .. KEY.idempotency .. key, id
    else
      records[#records + 1] = root .. KEY.operation .. id
    end
    at = at + string.byte(argv[1], position) - 48
  end
  if #records > 0 and redis.call('EXISTS', unpack(records)) > 0 then return false end
  return #claims == 0 or redis.call('MSETNX', unpack(claims)) == 1
end

-- Who was refused, or could not be read, has no record, and gets no key.
local function give_back_key(root, id, key)
  if key ~= '' and redis.call('EXISTS', root .. KEY.operation .. id) == 0 then redis.call('DEL', root .. KEY.idempotency .. key) end
end

local function mesh1_start_many(keys, argv)
  local root, replies, gather, at = keys[1], {}, gathering(now_ms(), argv[2] == '1'), 3
  gather.fresh = claim_all(root, argv)
  for position = 1, #argv[1] do
    gather.place = position
    local after = at + string.byte(argv[1], position) - 48
    -- What cannot be run is refused before its first write, and those before it are written already.
    local reply = each(pcall(start_one, root, gather, unpack(argv, at, after - 1)))
    local refused = type(reply) == 'table' and (reply[1] == 'refused' or reply[1] == 'broken')
    if refused and gather.fresh then give_back_key(root, argv[at + 1], argv[at + 2]) end
    replies[position] = reply
    at = after
  end
  put_all(gather)
  return replies
end
