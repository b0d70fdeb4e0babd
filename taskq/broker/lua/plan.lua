-- plan: make a schedule, or give one another definition; what it fired so far is kept.
-- KEYS  base
-- ARGV  publish name revision tick due declared definition
-- Returns 'ok' | 'stale'    (stale: it is of another revision by now; nothing was done)
-- use: core clock schedules
-- revision  of the definition whose place is taken, and its next tick, as `fires` has them: one
--           that was fired since must not come again; '' where there was none
-- tick      the next, 13 digits; zeros: there is none; due: when to fire it
-- declared  for how many ms some worker's code vouches for it; 0: made at run time
local publish, name, revision, tick, due = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local declared, definition = tonumber(ARGV[6]), ARGV[7]
if #tick ~= 13 or not tonumber(tick) or not tonumber(due) or not declared then
  return redis.error_reply('ERR invalid tick')
end
local state = state_of(name)
if (state and sub(state, 1, 29) or '') ~= revision then
  -- The reply to the first call may have been lost.
  return call('HGET', base .. 'schedules', name) == definition and 'ok' or 'stale'
end
-- The first write adds, so that a full Redis refuses here, with nothing done.
call('HSET', base .. 'schedules', name, definition)
local following = math.max(now_us, (state and tonumber(revision_of(state)) or 0) + 1)
local fresh = string.format('%016.0f', following)
if not state then
  save_state(name, {fresh, tick, NO_TICK, NO_TICK, NO_ID, string.rep('0', 30), '-'})
elseif is_paused(state) then
  save_state(name, {fresh, tick, sub(state, 30)})
else
  local waits = tick == tick_of(state) and sub(state, 118, 118) or '-'
  save_state(name, {fresh, tick, sub(state, 30, 117), waits})
end
if not (state and is_paused(state)) then await_tick(name, tick, due) end
if declared > 0 then
  call('ZADD', base .. 'declared', digits(now + declared), name)
else
  call('ZREM', base .. 'declared', name)
end
announce_change(publish, name)
return 'ok'
