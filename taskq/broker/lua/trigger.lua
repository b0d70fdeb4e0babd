-- trigger: enqueue a message of a schedule now, whatever its next tick is.
-- KEYS  base
-- ARGV  name revision lane label message
-- Returns 'o' | 'd' | 'stale'    (d: done before; stale: it is of another revision by now, or gone)
-- use: core clock lanes schedules
local name, lane, label, message = ARGV[1], ARGV[3], ARGV[4], ARGV[5]
local id = sub(message, 13, 44)
if call('EXISTS', base .. 'm:' .. id) == 1 then return 'd' end
local state = state_of(name)
if not state or revision_of(state) ~= ARGV[2] then return 'stale' end
-- The first write adds, so that a full Redis refuses here, with nothing done.
push(lane, {message})
call('SET', base .. 'm:' .. id, 'Q' .. label)
save_state(name, {
  sub(state, 1, 42), string.format('%013.0f', now), id, more(sub(state, 88, 97), 1),
  sub(state, 98),
})
return 'o'
