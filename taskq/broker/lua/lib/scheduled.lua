-- Messages that wait for their time. Needs core, clock, records and lanes.
-- A waiting message lives in its record, behind its lane and its history.
local function wait_until(id, due, head, lane, history, message)
  -- Not by '%s': Lua 5.1 cuts a string there at its first zero byte.
  local parts = string.format('%03d', #lane) .. lane .. string.format('%07d', #history) .. history
  call('SET', base .. 'm:' .. id, head .. parts .. message)
  call('ZADD', base .. 'scheduled', digits(due), id)
  call('HINCRBY', base .. 'waiting', task_of(lane), 1)
end

-- lane, history, message
local function parts_of(record)
  local at = HEAD + 4 + tonumber(sub(record, HEAD + 1, HEAD + 3))
  local lane = sub(record, HEAD + 4, at - 1)
  local length = tonumber(sub(record, at, at + 6))
  return lane, sub(record, at + 7, at + 6 + length), sub(record, at + 7 + length)
end

local function is_waiting(record)
  return record and (sub(record, 1, 1) == 'S' or sub(record, 1, 1) == 'Y')
end

local function count_out(lane)
  local task = task_of(lane)
  if call('HINCRBY', base .. 'waiting', task, -1) <= 0 then
    call('HDEL', base .. 'waiting', task)
  end
end

-- Take a waiting message out of the schedule, wherever it goes next.
local function unschedule(id, record)
  call('ZREM', base .. 'scheduled', id)
  count_out((parts_of(record)))
end

-- Move what is due to the ready lists; at most 1,000 messages and 4 MiB. Returns {{id, record}*},
-- those that no script wrote.
local function promote()
  local due = call('ZRANGEBYSCORE', base .. 'scheduled', '-inf', digits(now), 'LIMIT', 0, 1000)
  local ids, records, bytes = {}, {}, 0
  for i, id in ipairs(due) do
    if bytes >= 4194304 then break end
    ids[i], records[i] = id, call('MGET', base .. 'm:' .. id)[1]
    bytes = bytes + (records[i] and #records[i] or 0)
  end
  local unsound = {}
  if #ids == 0 then return unsound end
  call('ZREM', base .. 'scheduled', unpack(ids))
  local lanes, order = {}, {}
  for i, id in ipairs(ids) do
    local record = records[i]
    if record and not is_sound(record) then
      unsound[#unsound + 1] = {id, record}
    elseif is_waiting(record) then
      local lane, history, message = parts_of(record)
      count_out(lane)
      call('SET', base .. 'm:' .. id, queued(label_of(record), counters_of(record), history))
      if not lanes[lane] then
        lanes[lane] = {}
        order[#order + 1] = lane
      end
      table.insert(lanes[lane], message)
    end
  end
  for _, lane in ipairs(order) do push(lane, lanes[lane]) end
  -- Of what task those were is not known, so nobody could count them out.
  if #unsound > 0 and call('EXISTS', base .. 'scheduled') == 0 then call('DEL', base .. 'waiting') end
  return unsound
end
