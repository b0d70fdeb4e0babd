-- distrust: fire no more ticks of a schedule whose definition is not proven. It stays, to be seen.
-- KEYS  base
-- ARGV  (name definition)*    as `agenda` told them
-- Returns {left}    how many were set aside
-- use: core counts
local left = 0
for i = 1, #ARGV, 2 do
  -- Another one may have taken its place, and may be proven.
  if call('HGET', base .. 'schedules', ARGV[i]) == ARGV[i + 1]
    and call('ZREM', base .. 'ticks', ARGV[i]) == 1 then
    count('distrusted')
    left = left + 1
  end
end
return {left}
