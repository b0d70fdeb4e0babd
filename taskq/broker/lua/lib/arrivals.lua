-- What falls due during a claim: it is claimed behind what is queued. A part of exchange, with
-- its locals.

-- How much of what is due to look at: what can be claimed at once, if all of it is like the
-- first. What is put into a list for a later claim costs Redis twice as much; so no more than
-- a priority needs to choose from.
local function worth_a_look()
  local lane = first_lane()
  local task = lane and task_of(lane)
  local kind = task and call('HGET', base .. 'known:' .. digest, task)
  if not kind then return 100 end
  local free = room[kind] + (caps[task] or 0) - call('LLEN', base .. 'ready:' .. lane)
  return math.min(math.max(free, 100), 500)
end

-- Take it out of the schedule. Returns as `fall_due`, less what is not sound.
local function arrive()
  local by_lane, order, strange = fall_due(worth_a_look())
  for _, one in ipairs(strange) do
    set_aside(publish, one[1], '', one[2], 'Q', 'its record is none', letters, letter_age)
  end
  return by_lane, order
end

-- Take what falls due in this very call, as if it had been queued behind what is in the list.
-- Returns whether none is left.
local function draw(lot, most, most_bytes, popped, ids, keys, known)
  while lot.first <= #lot.ids and #popped < most and taken_bytes < most_bytes do
    local from, to = lot.first, #popped + 1
    popped[to], ids[to] = lot.messages[from], lot.ids[from]
    keys[to], known[to] = lot.keys[from], lot.records[from]
    taken_bytes, lot.first = taken_bytes + #popped[to], from + 1
  end
  return lot.first > #lot.ids
end
