-- trigger: enqueue a message of a schedule now, whatever its next tick is.
-- KEYS  base
-- ARGV  name revision at lane label message    at: the instant, 13 digits; the id follows from it
-- Returns 'o' | 'd' | 'stale'    (d: done before; stale: it is of another revision by now, or gone)
-- use: core clock lanes schedules
local name, at, lane, label, message = ARGV[1], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local id = sub(message, 13, 44)
if #at ~= 13 then return redis.error_reply('ERR invalid instant') end
if call('EXISTS', base .. 'm:' .. id) == 1 then return 'd' end
local state = state_of(name)
if not state or revision_of(state) ~= ARGV[2] then return 'stale' end
-- The first write adds, so that a full Redis refuses here, with nothing done.
push(lane, {message})
call('SET', base .. 'm:' .. id, 'Q' .. label)
save_state(name, {
  sub(state, 1, 42), at, id, more(sub(state, 88, 97), 1),
  sub(state, 98),
})
return 'o'
