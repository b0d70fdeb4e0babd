-- cancel: take a message back: at once where it waits, by its worker where it runs.
-- KEYS  base
-- ARGV  publish id order    order: 't' to end the process or '-', a proof of 25 bytes, the reason
-- Returns 'cancelled' | 'told' | 'over' | 'unknown'
-- use: core clock records cancels lanes scheduled recall
local publish, id, order = ARGV[1], ARGV[2], ARGV[3]
if not is_order(order) then return redis.error_reply('ERR not an order') end
call('HDEL', base .. 'seqs', '')
return recall(publish, id, order)
