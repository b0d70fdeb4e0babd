-- Claimed messages: `running:<worker>` maps id and claim number to lane and message.
-- Needs core.
local function pack_claimed(lane, message)
  return string.format('%03d', #lane) .. lane .. message
end

-- lane, message
local function unpack_claimed(value)
  local length = tonumber(sub(value, 1, 3))
  return sub(value, 4, 3 + length), sub(value, 4 + length)
end
