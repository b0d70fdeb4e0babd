-- renew: the supervisor renews the lease of a child that is alive.
-- KEYS  base
-- ARGV  worker lease_ms digest
-- Returns {word (field order)*}    word: 'ok' | 'lost' (no member; nothing was changed)
-- use: core clock cancels
-- field, order  what the child is to cancel, as `orders` says
-- A first write that removes lets a lease be renewed on a full Redis.
call('HDEL', base .. 'seqs', '')
if not call('ZSCORE', base .. 'workers', ARGV[1]) then return {'lost'} end
call('ZADD', base .. 'workers', digits(now + tonumber(ARGV[2])), ARGV[1])
call('ZADD', base .. 'groups', digits(now + DAY), ARGV[3])
for _, key in ipairs({'groups', 'names', 'seqs', 'known:' .. ARGV[3]}) do
  call('PEXPIRE', base .. key, DAY)
end
local out = orders_of(ARGV[1])
table.insert(out, 1, 'ok')
return out
