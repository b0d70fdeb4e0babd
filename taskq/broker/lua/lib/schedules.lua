-- Schedules: `schedules` maps a name to its signed definition, `fires` to what came of it:
--
--   revision(16) tick(13) last(13) at(13) id(32) fired(10) skipped(10) missed(10) state(1) note
--
-- revision  another one with each definition
-- tick      the next, in ms since the epoch; zeros: there is none
-- last, at  the last that was fired, and when; id: the message that was enqueued last
-- fired     how many messages; skipped: ticks for their overlap; missed: for being too late
-- state     '-' goes on, 'w' its tick waits for the message before, 'p' paused
--
-- `ticks` has when the next tick is to be fired: later than itself where it is jittered.
-- `broker/timetable.py` reads the same. Needs core and clock.
local NO_TICK = '0000000000000'
local NO_ID = string.rep('0', 32)

-- Whoever can write to Redis can write what is none: its numbers would be no numbers.
local SOUND = '^' .. string.rep('%d', 55) .. string.rep('%x', 32) .. string.rep('%d', 30) .. '[-wp]'

-- The state of a schedule; false where there is none, or one that no script wrote.
local function state_of(name)
  local state = call('HGET', base .. 'fires', name)
  return state and string.find(state, SOUND) and state
end

local function revision_of(state)
  return sub(state, 1, 16)
end

local function tick_of(state)
  return sub(state, 17, 29)
end

local function id_in(state)
  return sub(state, 56, 87)
end

local function is_paused(state)
  return sub(state, 118, 118) == 'p'
end

local function save_state(name, parts)
  call('HSET', base .. 'fires', name, table.concat(parts))
end

-- So many more, in ten digits.
local function more(count, by)
  return string.format('%010d', math.min(tonumber(count) + by, 9999999999))
end

-- From now on its next tick is this one, to be fired at `due`.
local function await_tick(name, tick, due)
  if tick == NO_TICK then
    call('ZREM', base .. 'ticks', name)
  else
    call('ZADD', base .. 'ticks', due, name)
  end
end

-- Whoever fires schedules slept until a tick that is not the next one any more.
local function announce_change(publish, name)
  call(publish, base .. 'agenda', name)
end
