-- The keys, and numbers as text.
local call, sub = redis.call, string.sub
local base = KEYS[1]
local DAY = 86400000

-- tostring() would write a large number as 1.7e+15.
local function digits(number)
  return string.format('%.0f', number)
end
