-- orders: which of its messages a child is to cancel.
-- KEYS  base
-- ARGV  worker
-- Returns {(field order)*}    order: 't' to end the process, else '-', proof, reason
-- use: core cancels
-- A first write that removes, before what has ended is dropped.
call('HDEL', base .. 'seqs', '')
return orders_of(ARGV[1])
