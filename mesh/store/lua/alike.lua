-- What became of an operation is known for those like it, in the same call and in later ones: start.lua and complete.lua.
-- Operations that go the same way have heads that differ in nothing but their acceptance (layout.HEAD), eight bytes behind the
-- four of a frame. The rest is their way.

local function frame_of(head) return string.sub(head, 1, 4) end
local function way_of(head) return string.sub(head, 13) end

-- How long ago it was accepted, ms.
local function age(head, now) return now - struct.unpack('>I8', head, 5) end

-- Two functions, to look up and to note what is known by two texts, until there is too much of it.
local function memory()
  local kept, count = {}, 0
  local function known(one, other)
    local some = kept[one]
    return some and some[other]
  end
  local function note(one, other, what)
    if count >= LIMIT.alike then kept, count = {}, 0 end
    kept[one] = kept[one] or {}
    kept[one][other], count = what, count + 1
  end
  return known, note
end

-- The same for what a call does by itself; nil in a call of one.
local function like_in(gather, one, other)
  local likes = gather and gather.alike[one]
  return likes and likes[other]
end

local function note_in(gather, one, other, like)
  if not gather then return end
  gather.alike[one] = gather.alike[one] or {}
  gather.alike[one][other] = like
end
