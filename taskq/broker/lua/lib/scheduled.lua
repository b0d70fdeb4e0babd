-- Messages that wait for their time. Needs core, clock, due, records and
-- lanes.
-- One is due before all others now. Whoever watches, watches for a later time: let somebody
-- look again.
local function watch_for(lane)
  call('DEL', base .. 'timer')
  ring_for(task_of(lane))
end

-- A message that waits for another attempt lives in its record, behind its lane and its history.
local function wait_until(id, due, head, lane, history, message)
  -- Not by '%s': Lua 5.1 cuts a string there at its first zero byte.
  local parts = string.format('%03d', #lane) .. lane .. string.format('%07d', #history) .. history
  call('SET', base .. 'm:' .. id, head .. parts .. message)
  call('ZADD', base .. 'scheduled', digits(due), id)
  call('HINCRBY', base .. 'waiting', task_of(lane), 1)
end

-- lane, history, message
local function parts_of(record)
  local first = is_unclaimed(record) and SHORT_HEAD + 1 or HEAD + 1
  local at = first + 3 + tonumber(sub(record, first, first + 2))
  local lane = sub(record, first + 3, at - 1)
  if first <= HEAD then return lane, '', sub(record, at) end
  local length = tonumber(sub(record, at, at + 6))
  return lane, sub(record, at + 7, at + 6 + length), sub(record, at + 7 + length)
end

local function is_waiting(record)
  return record and (sub(record, 1, 1) == 'S' or sub(record, 1, 1) == 'Y')
end

local function count_out(lane, count)
  local task = task_of(lane)
  if call('HINCRBY', base .. 'waiting', task, -count) <= 0 then
    call('HDEL', base .. 'waiting', task)
  end
end

-- The lane of the one that is due first; nil where it has no record.
local function first_lane()
  local id = call('ZRANGE', base .. 'scheduled', 0, 0)[1]
  local record = id and read(id)
  return is_waiting(record) and (parts_of(record)) or nil
end

-- Take a waiting message out of the schedule, wherever it goes next.
local function unschedule(id, record)
  call('ZREM', base .. 'scheduled', id)
  count_out((parts_of(record)), 1)
end

-- The records of the first of these messages: of 4 MiB in all, or little more.
local function records_of(ids)
  local keys, found, read, bytes, largest, some = {}, {}, 0, 0, 1, 4
  for i, id in ipairs(ids) do keys[i] = base .. 'm:' .. id end
  while read < #ids and bytes < 4194304 do
    local upto = math.min(read + some, #ids)
    for _, record in ipairs(call('MGET', unpack(keys, read + 1, upto))) do
      found[#found + 1] = record
      local size = record and #record or 0
      bytes, largest = bytes + size, math.max(largest, size)
    end
    -- A thousand large ones, read at once, would hold Redis up for seconds.
    read, some = upto, math.min(100, math.ceil((4194304 - bytes) / largest))
  end
  return found, keys
end

-- Take what is due out of the schedule, at most so many messages. Returns them by lane, and
-- the lanes in order: of each message its bytes, the key of its record, and what that says of
-- it once it is queued. The lanes are open then; `queue_rest` must follow. Returns also
-- {{id, record}*}, those that no script wrote.
local function fall_due(most)
  local due = call('ZRANGEBYSCORE', base .. 'scheduled', '-inf', digits(now), 'LIMIT', 0, most)
  local records, keys = records_of(due)
  -- They are the first of all.
  call('ZREMRANGEBYRANK', base .. 'scheduled', 0, #records - 1)
  local lanes, order, unsound = {}, {}, {}
  -- What stands before the message in the record before; most are alike.
  local front, width, record_now, to, n
  for i, record in ipairs(records) do
    local alike = front and record and #record > width and sub(record, 1, width) == front
    if not alike and record and not is_sound(record) then
      unsound[#unsound + 1] = {due[i], record}
    elseif not alike and is_waiting(record) then
      local lane, history, message = parts_of(record)
      width = #record - #message
      front, alike = sub(record, 1, width), true
      record_now = queued(label_of(record), counters_of(record), history)
      to = lanes[lane]
      if not to then
        to = {lane = lane, first = 1, ids = {}, messages = {}, keys = {}, records = {}}
        lanes[lane], order[#order + 1] = to, to
      end
    end
    if alike and sub(record, width + 13, width + 44) == due[i] then
      n = #to.ids + 1
      to.ids[n], to.messages[n] = due[i], sub(record, width + 1)
      to.keys[n], to.records[n] = keys[i], record_now
    elseif alike then
      -- Another message's bytes, or none's.
      unsound[#unsound + 1] = {due[i], record}
      count_out(to.lane, 1)
    end
  end
  for _, to in ipairs(order) do
    if #to.ids > 0 then count_out(to.lane, #to.ids) end
    if #to.ids > 0 and call('LLEN', base .. 'ready:' .. to.lane) == 0 then open_lane(to.lane) end
  end
  -- Of what task those were is not known, so nobody could count them out.
  if #unsound > 0 and call('EXISTS', base .. 'scheduled') == 0 then call('DEL', base .. 'waiting') end
  return lanes, order, unsound
end

-- Put what nobody claimed of it into the ready lists.
local function queue_rest(order)
  for _, from in ipairs(order) do
    local count, changed = #from.ids, {}
    for i = from.first, count do
      changed[#changed + 1], changed[#changed + 2] = from.keys[i], from.records[i]
    end
    for first = 1, #changed, 1000 do
      call('MSET', unpack(changed, first, math.min(first + 999, #changed)))
    end
    if from.first <= count then
      call('LPUSH', base .. 'ready:' .. from.lane, unpack(from.messages, from.first, count))
      ring_for(task_of(from.lane))
    end
  end
end
