-- wake: end the blocked call of one child, so that it looks around.
-- KEYS  base
-- ARGV  name    of the child's bell, or its id
-- Returns 'ok'
-- use: core
local wake = base .. 'wake:' .. ARGV[1]
if call('LLEN', wake) == 0 then call('LPUSH', wake, '1') end
call('PEXPIRE', wake, 5000)
return 'ok'
