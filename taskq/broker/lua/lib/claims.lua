-- Claims: `serve` takes messages from lanes while there is room, `levels` says from which.
-- What is taken is in `claims`, `records` and `out`. A part of exchange, with its locals.
local LOOK_MOST, BYTES_MOST, CHUNK = 1000, 4194304, 100
local fresh = 'R' .. NO_LABEL .. '000000000000000001' .. digits(now_us) .. claim

-- Pop at most `most` messages; fewer where they are large. Returns whether none is left.
local function pop(lane, most)
  local key, got = base .. 'ready:' .. lane, {}
  while #got < most and taken_bytes < BYTES_MOST do
    local want = math.min(most - #got, CHUNK)
    local chunk = call('RPOP', key, want) or {}
    for i, message in ipairs(chunk) do
      if taken_bytes >= BYTES_MOST then
        for back = #chunk, i, -1 do call('RPUSH', key, chunk[back]) end
        return got, false
      end
      taken_bytes = taken_bytes + #message
      got[#got + 1] = message
    end
    if #chunk < want then return got, true end
  end
  return got, call('LLEN', key) == 0
end

-- Returns how many were popped, how many of them are to be run, and whether none is left.
local function take(lane, sort, most)
  local popped, empty = pop(lane, most)
  local ids, keys, known, before = {}, {}, {}, places
  for i, message in ipairs(popped) do
    local id = sub(message, 13, 44)
    ids[i], keys[i] = id, base .. 'm:' .. id
  end
  if #popped > 0 then known = call('MGET', unpack(keys)) end
  if empty and coming[lane] then
    empty = seldom().draw(coming[lane], most, BYTES_MOST, popped, ids, keys, known)
  end
  local head = pack_claimed(lane, '')
  looked = looked + #popped
  for i, message in ipairs(popped) do
    local id, record = ids[i], known[i]
    -- Of most messages there is no more to know than this.
    if record and record ~= 'Q' and not seldom().is_sound(record) then record = nil end
    local plain = record == 'Q' and not taken[id] and sub(message, 45, 57) == NEVER
    if plain or seldom().is_to_run(lane, id, message, record) then
      taken[id] = true
      record = (plain or not record or record == 'Q') and fresh or seldom().claimed_record(record)
      records[places + 1], records[places + 2] = keys[i], record
      claims[places + 1], claims[places + 2] = id .. seq, head .. message
      out[places + 6], out[places + 7] = record == fresh and sort or sort .. record, message
      places = places + 2
    end
  end
  return #popped, (places - before) / 2, empty
end

-- The lanes of one priority share what room there is: the one served least comes next.
local left = {}
local function serve(lanes)
  local passes = base .. 'pass:' .. lanes.priority
  for _, lane in ipairs(lanes) do
    lane.pass = #lanes > 1 and tonumber(call('ZSCORE', passes, lane.name) or 0) or 0
  end
  while #lanes > 0 do
    local best, rivals = 1, 0
    for i, lane in ipairs(lanes) do
      if lane.pass < lanes[best].pass then best = i end
    end
    local lane = lanes[best]
    for _, other in ipairs(lanes) do
      if other.kind == lane.kind then rivals = rivals + 1 end
    end
    local slots = math.ceil(room[lane.kind] / rivals)
    local most = math.min(slots + (caps[lane.task] or 0), LOOK_MOST - looked)
    local popped, accepted, empty = 0, 0, false
    if most > 0 and taken_bytes < BYTES_MOST then
      popped, accepted, empty = take(lane.name, lane.sort, most)
    end
    local beyond = math.max(accepted - slots, 0)
    room[lane.kind] = room[lane.kind] - (accepted - beyond)
    if caps[lane.task] then caps[lane.task] = caps[lane.task] - beyond end
    if empty then
      close_lane(lane.name)
      table.remove(lanes, best)
    elseif popped == 0 then
      left[lane.kind] = true
      table.remove(lanes, best)
    else
      lane.pass = lane.pass + popped
      call('ZINCRBY', passes, popped, lane.name)
    end
  end
end

-- The open lanes of known tasks, level by level: first those of the highest priority.
local function levels()
  local found, first = {}, 0
  repeat
    local open = call('ZREVRANGE', base .. 'lanes', first, first + 999, 'WITHSCORES')
    if #open == 0 then break end
    local tasks = {}
    for i = 1, #open, 2 do tasks[#tasks + 1] = task_of(open[i]) end
    local kinds = call('HMGET', base .. 'known:' .. digest, unpack(tasks))
    for i, task in ipairs(tasks) do
      local name, priority, kind = open[2 * i - 1], open[2 * i], kinds[i]
      if kind then
        local sort = caps[task] and AHEAD[kind] or kind
        if not found[#found] or found[#found].priority ~= priority then
          found[#found + 1] = {priority = priority}
        end
        table.insert(found[#found], {name = name, task = task, kind = kind, sort = sort})
      end
    end
    first = first + 1000
  until #open < 2000
  return found
end
