-- disobey: drop orders that a worker did not find proven, so that they come no more.
-- KEYS  base
-- ARGV  worker (field order)*    as `orders` told them
-- Returns {dropped}
-- use: core counts
local worker, dropped = ARGV[1], 0
local key = base .. 'cancels:' .. worker
call('HDEL', key, '')
for i = 2, #ARGV, 2 do
  local id, seq = sub(ARGV[i], 1, 32), sub(ARGV[i], 33)
  -- Another one may have taken its place, and may be proven.
  if call('HGET', key, id) == seq .. ARGV[i + 1] then
    call('HDEL', key, id)
    count('disobeyed')
    dropped = dropped + 1
  end
end
return {dropped}
