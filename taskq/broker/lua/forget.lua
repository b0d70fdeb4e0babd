-- forget: drop the outcome of a message that is over.
-- KEYS  base
-- ARGV  id
-- Returns 'ok' | 'no'    (no: not over yet, or its bytes are still in a list)
-- use: core records
local key = base .. 'm:' .. ARGV[1]
local record = read(ARGV[1])
if not record or not is_terminal(record) or call('PTTL', key) < 0 then return 'no' end
call('DEL', key)
return 'ok'
