-- fire: what is due of a schedule becomes messages, once, and its next tick is awaited.
-- KEYS  base
-- ARGV  publish name revision tick last overlap order next due skipped missed lane label (at message)*
-- Returns {word fired}    word: 'ok' | 'wait' | 'stale' (another one was quicker; nothing was done)
-- use: core clock records cancels lanes scheduled recall schedules
-- tick, last  the next tick and the last message, as whoever fires knows them
-- overlap     if that message is not over: 'a' fire all the same, 's' skip, 'q' wait, 'c' cancel
--             it, by the order; but for 'a', at most one message comes
-- next, due   the next tick, 13 digits (zeros: there is none), and when to fire it
-- skipped, missed  how many ticks are left out, for their overlap and for being too late
-- at          the tick for which a message is
local publish, name, overlap, order = ARGV[1], ARGV[2], ARGV[6], ARGV[7]
local following, due, lane, label = ARGV[8], ARGV[9], ARGV[12], ARGV[13]
local skipped, missed = tonumber(ARGV[10]), tonumber(ARGV[11])
if #following ~= 13 or not tonumber(following) or not tonumber(due) or not skipped or not missed then
  return redis.error_reply('ERR invalid tick')
end
local state = state_of(name)
local expected = ARGV[3] .. ARGV[4]
local score = call('ZSCORE', base .. 'ticks', name)
-- An order was given for one message: another may have been enqueued since.
local other = overlap == 'c' and state and id_in(state) ~= ARGV[5]
if not state or sub(state, 1, 29) ~= expected or other or is_paused(state)
  or not score or tonumber(score) > now then
  return {'stale', 0}
end

local last, at, id = sub(state, 30, 42), sub(state, 43, 55), id_in(state)
local before = id ~= NO_ID and read(id)
local running = before and not is_terminal(before)
if running and overlap == 'c' and not is_order(order) then
  return redis.error_reply('ERR not an order')
end
local first = 14
if running and #ARGV > first and overlap == 'q' then
  if sub(state, 118, 118) ~= 'w' then
    save_state(name, {sub(state, 1, 117), 'w'})
  end
  return {'wait', 0}
end
if running and overlap == 's' then
  skipped = skipped + (#ARGV + 1 - first) / 2
  first = #ARGV + 1
end

local fresh, records, seen = {}, {}, {}
for i = first, #ARGV, 2 do
  last, id = ARGV[i], sub(ARGV[i + 1], 13, 44)
  local key = base .. 'm:' .. id
  -- One that is known was fired before: by hand, for a time that was missed.
  if not seen[id] and call('EXISTS', key) == 0 then
    seen[id], fresh[#fresh + 1] = true, ARGV[i + 1]
    records[#records + 1], records[#records + 2] = key, 'Q' .. label
  end
  at = string.format('%013.0f', now)
end
-- The first write adds, so that a full Redis refuses here, with nothing done.
if #fresh > 0 then
  push(lane, fresh)
  call('MSET', unpack(records))
end
local waits = following ~= NO_TICK and tonumber(due) <= now and overlap == 'q' and 'w' or '-'
save_state(name, {
  ARGV[3], following, last, at, id, more(sub(state, 88, 97), #fresh),
  more(sub(state, 98, 107), skipped), more(sub(state, 108, 117), missed), waits,
})
await_tick(name, following, due)
if running and overlap == 'c' and #fresh > 0 then
  recall(publish, id_in(state), order)
end
return {'ok', #fresh}
