-- resume: fire a suspended schedule again, from a tick on.
-- KEYS  base
-- ARGV  publish name revision tick due    tick: the next, 13 digits; zeros: there is none
-- Returns 'ok' | 'stale'    (stale: it is of another revision by now, or gone)
-- use: core clock schedules
local publish, name, tick, due = ARGV[1], ARGV[2], ARGV[4], ARGV[5]
if #tick ~= 13 or not tonumber(tick) or not tonumber(due) then
  return redis.error_reply('ERR invalid tick')
end
local state = state_of(name)
if not state or revision_of(state) ~= ARGV[3] then return 'stale' end
if is_paused(state) then
  save_state(name, {sub(state, 1, 16), tick, sub(state, 30, 117), '-'})
  await_tick(name, tick, due)
  announce_change(publish, name)
end
return 'ok'
