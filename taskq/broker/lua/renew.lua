-- renew: the supervisor renews the lease of a child that is alive.
-- KEYS  base
-- ARGV  worker lease_ms digest
-- Returns {word (field order)*}    word: 'ok' | 'unknown' (renewed; its tasks were forgotten) | 'lost' (no member; nothing was changed)
-- use: core clock cancels leases
-- field, order  what the child is to cancel, as `orders` says
-- A first write that removes lets a lease be renewed on a full Redis.
call('HDEL', base .. 'seqs', '')
if not renew_lease(ARGV[1], tonumber(ARGV[2])) then return {'lost'} end
local word = keep_known(ARGV[3]) and 'ok' or 'unknown'
local out = orders_of(ARGV[1])
table.insert(out, 1, word)
return out
