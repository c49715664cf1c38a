-- start_many: many starts in one step, each on its own: what one is refused for stops no other. One fsync for all.
-- Keys: partition root. Arguments: a letter for each start: how many arguments it has behind its first, a digit, or, where its
--   first is that of the start before it and left out, the one 32 behind that digit (`S` for 3); '1' where none of them is
--   leased to anybody here (a batch), else ''; and those of all starts, as in start.lua.
-- Reply: for each, in order, what start replies, or {'refused', 'MESH_WORD detail'}, or {'broken', why}, or the place of the
--   reply that it has too. Flags as start.

local LEFT_OUT = 80 -- the first of those letters

-- Claims the keys of all starts in one go, where nobody has any of them and no operation is here. Else nothing: whoever comes
-- again must be told from whoever is new, one after the other.
local function claim_all(root, argv, letters)
  local claims, records, seen, at = {}, {}, {}, 3
  for position = 1, #letters do
    local letter = letters[position]
    if letter < LEFT_OUT then at = at + 1 end
    local id, key = argv[at], argv[at + 1]
    local one = key ~= '' and key or id
    if not key or seen[one] then return false end
    seen[one] = true
    if key ~= '' then
      claims[#claims + 1], claims[#claims + 2] = root .. KEY.idempotency .. key, id
    else
      records[#records + 1] = root .. KEY.operation .. id
    end
    at = at + letter % 16
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
  local letters, first, like = { string.byte(argv[1], 1, -1) }, nil, nil
  gather.fresh = claim_all(root, argv, letters)
  for position = 1, #letters do
    gather.place = position
    local letter = letters[position]
    if letter < LEFT_OUT then first, like, at = argv[at], nil, at + 1 end
    local count = letter % 16
    -- What cannot be run is refused before its first write, and those before it are written already.
    local reply
    if count ~= 3 then
      reply = each(pcall(start_one, root, gather, first, unpack(argv, at, at + count - 1)))
    else
      like = like or like_in(gather, first, '')
      if like then
        local sound
        sound, reply = pcall(start_alike, root, gather, like, argv[at], argv[at + 1], argv[at + 2], '')
        if reply ~= like.place then reply = each(sound, reply) end
      end
      -- It is known, or none was like it so far.
      if not reply then reply = each(pcall(start_one, root, gather, first, argv[at], argv[at + 1], argv[at + 2])) end
    end
    if reply ~= (like and like.place) and gather.fresh and type(reply) == 'table' and (reply[1] == 'refused' or reply[1] == 'broken') then
      give_back_key(root, argv[at], argv[at + 1])
    end
    replies[position] = reply
    at = at + count
  end
  put_all(gather)
  return replies
end
