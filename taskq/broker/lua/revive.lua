-- revive: queue the message of a dead letter anew and drop the letter; both, or an error and none.
-- KEYS  base
-- ARGV  id died lane message    died: the letter's time, as it was read
-- Returns 'o' | 'd' | 'no'    (d: done before; no: there is no such letter)
-- use: core clock lanes
local id, died, lane, message = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local record = base .. 'm:' .. sub(message, 13, 44)
if call('EXISTS', record) == 1 then return 'd' end
if call('ZSCORE', base .. 'dead', id) ~= died then return 'no' end
local expires = sub(message, 45, 57)
-- The first write adds, so that a full Redis refuses here, with nothing done.
push(lane, {message})
call('SET', record, expires == '0000000000000' and 'Q' or 'Q--------' .. expires)
call('ZREM', base .. 'dead', id)
call('HDEL', base .. 'dead:m', id)
return 'o'
