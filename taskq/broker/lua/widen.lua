-- widen: says how many partitions the queue has, and raises that to what its user says.
-- KEYS  base
-- ARGV  partitions most
-- Returns {partitions}
-- use: core
-- most  what is above that was written by no script, and counts as one
local told, most, name = tonumber(ARGV[1]), tonumber(ARGV[2]), base .. 'partitions'
-- MGET takes a key of another type for none.
local found = call('MGET', name)[1]
local known = found and tonumber(string.match(found, '^%d%d?%d?$')) or 1
if known > most then known = 1 end
if told > known then
  -- A first write that removes lets a worker start on a full Redis.
  call('HDEL', base .. 'seqs', '')
  call('SET', name, digits(told))
  known = told
end
return {known}
