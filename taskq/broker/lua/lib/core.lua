-- The clock, the keys, and numbers as text.
local call, sub = redis.call, string.sub
local base = KEYS[1]
local DAY = 86400000

local time = call('TIME')
local now_us = time[1] * 1000000 + time[2]
local now = math.floor(now_us / 1000)

-- tostring() would write a large number as 1.7e+15.
local function digits(number)
  return string.format('%.0f', number)
end
