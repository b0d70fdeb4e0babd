-- suspend: fire no more ticks of a schedule, until it is resumed.
-- KEYS  base
-- ARGV  name note    note: for people
-- Returns 'ok' | 'no'    (no: there is no such schedule)
-- use: core clock schedules
local name, note = ARGV[1], ARGV[2]
call('ZREM', base .. 'ticks', name)
local state = state_of(name)
if not state then return 'no' end
save_state(name, {sub(state, 1, 117), 'p', note})
return 'ok'
