-- agenda: which schedules are due, and when the next one is; vouches for those of a worker's code.
-- KEYS  base
-- ARGV  most declared skips (skipped)*skips (name)*
-- Returns {now next gone lapsed (name definition state)*}    next: '' or when to look again
-- use: core clock schedules
-- most      how many to return
-- declared  for how many ms those named are vouched for; 0: none is, and none has lapsed
-- skipped   names to be left out
-- gone      those of the named that there are not; lapsed: those that nobody vouches for now,
--           100 at most
local most, declared = tonumber(ARGV[1]), tonumber(ARGV[2])
local gone, lapsed, skipped, at = {}, {}, {}, 4 + tonumber(ARGV[3])
for i = 4, at - 1 do skipped[ARGV[i]] = true end
-- The first write removes, if only nothing: what keeps a declaration alive must not be refused.
call('ZREM', base .. 'declared', '')
if declared > 0 then
  for i = at, #ARGV do
    if state_of(ARGV[i]) then
      call('ZADD', base .. 'declared', digits(now + declared), ARGV[i])
    else
      gone[#gone + 1] = ARGV[i]
    end
  end
  -- Those of a module that is gone stay for good: they must not hide the others, so of many
  -- other ones are told each time.
  local many = call('ZCOUNT', base .. 'declared', '-inf', digits(now))
  local from = now_us % math.max(1, many - 99)
  lapsed = call('ZRANGEBYSCORE', base .. 'declared', '-inf', digits(now), 'LIMIT', from, 100)
end

local out, cut = {digits(now), '', gone, lapsed}, false
local due = call('ZRANGEBYSCORE', base .. 'ticks', '-inf', digits(now),
  'LIMIT', 0, most + tonumber(ARGV[3]) + 1)
for _, name in ipairs(due) do
  if not skipped[name] then
    local definition, state = call('HGET', base .. 'schedules', name), state_of(name)
    if #out >= 4 + 3 * most then
      cut = true
      break
    end
    if definition and state then
      out[#out + 1], out[#out + 2], out[#out + 3] = name, definition, state
    else
      -- Redis lost a part of it, or somebody spoilt it.
      call('ZREM', base .. 'ticks', name)
    end
  end
end
local following = call('ZRANGEBYSCORE', base .. 'ticks', '(' .. digits(now), '+inf',
  'WITHSCORES', 'LIMIT', 0, 1)
if cut then
  out[2] = digits(now)
elseif following[2] then
  out[2] = digits(tonumber(following[2]))
end
return out
