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

-- lane, message; lane '' where no script wrote that
local function unpack_claimed(value)
  local length = tonumber(string.match(value, '^%d%d%d'))
  if not length or #value <= 3 + length then return '', value end
  return sub(value, 4, 3 + length), sub(value, 4 + length)
end
