-- enrol: a child begins to serve the queue. Membership of `workers` is its lease.
-- KEYS  base
-- ARGV  worker lease_ms name digest (task kind)*
-- Returns 'ok'
-- use: core clock
-- A first write that removes lets a worker start on a full Redis.
call('HDEL', base .. 'seqs', '')
local worker, lease, name, digest = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]
local known = base .. 'known:' .. digest
for first = 5, #ARGV, 1000 do
  call('HSET', known, unpack(ARGV, first, math.min(first + 999, #ARGV)))
end
call('PEXPIRE', known, DAY)
call('ZADD', base .. 'workers', digits(now + lease), worker)
call('ZADD', base .. 'groups', digits(now + DAY), digest)
call('HSET', base .. 'names', worker, digest .. ' ' .. name)
-- Not `workers`: it leads to what the dead held, however long they are dead.
for _, key in ipairs({'groups', 'names'}) do call('PEXPIRE', base .. key, DAY) end
return 'ok'
