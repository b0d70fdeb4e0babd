-- When what waits for its time is due. Needs core and clock.
-- When: ms since the epoch, or '+' and ms from now; nil where it is neither.
local function due_at(text)
  local sign, number = string.match(text, '^([+-]?)(%d+)$')
  if not number then return nil end
  return sign == '+' and now + number or tonumber(text)
end

-- When the first of all is due, or a day from now; never, where nothing waits.
local function first_due()
  local due = call('ZRANGE', base .. 'scheduled', 0, 0, 'WITHSCORES')[2]
  return due and math.min(tonumber(due) or math.huge, now + DAY) or math.huge
end
