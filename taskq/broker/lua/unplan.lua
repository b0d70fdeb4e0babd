-- unplan: remove a schedule. What it has enqueued stays.
-- KEYS  base
-- ARGV  name definition    definition: '' for any; else nothing is done if it has another one
-- Returns 'ok' | 'no' | 'declared'    (no: there is none; declared: the code of a live worker has it)
-- use: core clock schedules
local name = ARGV[1]
call('ZREM', base .. 'ticks', '')
local definition = call('HGET', base .. 'schedules', name)
if not definition and not state_of(name) then return 'no' end
if ARGV[2] ~= '' and definition ~= ARGV[2] then return 'no' end
if tonumber(call('ZSCORE', base .. 'declared', name) or 0) > now then return 'declared' end
call('ZREM', base .. 'ticks', name)
call('ZREM', base .. 'declared', name)
call('HDEL', base .. 'schedules', name)
call('HDEL', base .. 'fires', name)
return 'ok'
