-- Claimed messages: `running:<worker>` maps id and claim number to lane and message.
-- Needs core.
local function pack_claimed(lane, message)
  return string.format('%03d', #lane) .. lane .. message
end

-- A name in `names` stands behind the digest of the tasks its worker knows.
local function digest_of(entry)
  return entry and string.match(entry, '^%S+') or ''
end

local function name_of(entry)
  return entry and string.match(entry, ' (.*)$') or ''
end

-- lane, message
local function unpack_claimed(value)
  local length = tonumber(sub(value, 1, 3))
  return sub(value, 4, 3 + length), sub(value, 4 + length)
end
