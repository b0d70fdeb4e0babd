-- exchange: end attempts and claim messages, in one call. A repeat gets the same reply.
-- KEYS  base
-- ARGV  worker seq digest lease_ms publish threads coroutines finishes (kind field payload number)*finishes (task cap)*
-- Returns {word now_us next_due more verdicts (record message)*}    word: 'ok' | 'lost' | 'stale'
-- use: core clock records lanes scheduled dead running
--
-- finishes  's', 'f' payload is the terminal record, number its TTL in ms
--           'y' retry: payload is the history, number the delay in ms
--           'b' release: back to where it came from, uncounted
--           'r' refused: payload is the terminal record, number its TTL in ms
-- field     id(32) and claim number(10), as in `running:<worker>`
-- verdicts  one letter a finish: 'k' recorded, 'l' the claim was lost
-- threads, coroutines  free slots; cap: how many messages of a task may come beyond them
-- record    't', 'c' or 'q' (a thread's, of a task with a cap); and the record, unless this
--           is the message's first claim
local worker, seq, digest, lease = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local publish = ARGV[5]
local room = {t = tonumber(ARGV[6]), c = tonumber(ARGV[7])}
local running = base .. 'running:' .. worker

-- A first write that removes: a full Redis must drain. The end of an attempt is one.
if ARGV[8] == '0' then call('HDEL', running, '') end

-- What the last exchange was, and what it was answered: seq(10) due(13) more ';' verdicts
local last = call('HGET', base .. 'seqs', worker) or ''
if sub(last, 1, 10) > seq then return {'stale', digits(now_us), '', '', ''} end

-- The claim is gone. Either this is a repeat, or the message was taken back.
local function finish_late(kind, id, claim, payload, ttl)
  local record = call('GET', base .. 'm:' .. id)
  if not record or #record < HEAD or claim_of(record) ~= claim then return 'l' end
  local state = sub(record, 1, 1)
  if state == 'R' then return 'l' end
  if is_terminal(record) or (kind ~= 's' and kind ~= 'f') then return 'k' end
  -- Taken back and not handed out since: the work is done, so let it count.
  if is_waiting(record) then
    unschedule(id, record)
    save_terminal(id, payload, ttl)
  else
    -- Its bytes are still in a list: the claim that meets them sets the TTL.
    save_terminal(id, payload)
  end
  announce(publish, id, payload)
  return 'k'
end

-- A retry that is due before all others: whoever watches, watches for a later time.
local function watch_anew(id, lane)
  if call('ZRANGE', base .. 'scheduled', 0, 0)[1] == id then
    call('DEL', base .. 'timer')
    if room.t + room.c == 0 then ring_for(task_of(lane)) end
  end
end

local function finish(kind, field, payload, number)
  local id = sub(field, 1, 32)
  if kind == 's' or kind == 'f' then
    if call('HDEL', running, field) == 0 then
      return finish_late(kind, id, worker .. sub(field, 33), payload, number)
    end
    save_terminal(id, payload, number)
    announce(publish, id, payload)
    return 'k'
  end
  local value = call('HGET', running, field)
  if not value then return finish_late(kind, id, worker .. sub(field, 33)) end
  call('HDEL', running, field)
  local lane, message = unpack_claimed(value)
  local record = call('GET', base .. 'm:' .. id) or ('R' .. NO_LABEL .. UNCLAIMED)
  if kind == 'b' then
    call('SET', base .. 'm:' .. id, queued(label_of(record), counters_of(record), history_of(record)))
    put_back(lane, message)
  elseif kind == 'y' then
    local counters = counters_of(record)
    local attempts = counted(sub(counters, 1, 6))
    local head = 'Y' .. label_of(record) .. attempts .. sub(counters, 7)
    wait_until(id, now + tonumber(number), head, lane, payload, message)
    watch_anew(id, lane)
  else
    set_aside(id, lane, message, history_of(payload))
    save_terminal(id, payload, number)
    announce(publish, id, payload)
  end
  return 'k'
end

-- A number that Redis would refuse must be refused before the first write.
local at, after = 9, 9 + 4 * tonumber(ARGV[8])
for i = at, after - 1, 4 do
  local least = (ARGV[i] == 'y' or ARGV[i] == 'b') and 0 or 1
  if (tonumber(ARGV[i + 3]) or -1) < least then
    return redis.error_reply('ERR invalid expire time or delay')
  end
end

local repeated = sub(last, 1, 10) == seq
local verdicts = {}
if repeated then
  verdicts[1] = string.match(last, ';(.*)$')
else
  for i = at, after - 1, 4 do
    verdicts[#verdicts + 1] = finish(ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3])
  end
end
verdicts, at = table.concat(verdicts), after
local caps = {}
for i = at, #ARGV, 2 do caps[ARGV[i]] = tonumber(ARGV[i + 1]) end

local expiry = call('ZSCORE', base .. 'workers', worker)
if not expiry then return {'lost', digits(now_us), '', '', verdicts} end
if tonumber(expiry) < now + 0.8 * lease then
  call('ZADD', base .. 'workers', digits(now + lease), worker)
end

local out = {'ok', digits(now_us), '', '', verdicts}
if repeated then
  local held, claimed = call('HGETALL', running), {}
  for i = 1, #held, 2 do
    if sub(held[i], 33) == seq then claimed[#claimed + 1] = {held[i], held[i + 1]} end
  end
  -- Ids are ordered by time.
  table.sort(claimed, function(a, b) return a[1] < b[1] end)
  for _, pair in ipairs(claimed) do
    local lane, message = unpack_claimed(pair[2])
    local kind = call('HGET', base .. 'known:' .. digest, task_of(lane)) or 't'
    out[#out + 1] = kind .. (call('GET', base .. 'm:' .. sub(pair[1], 1, 32)) or '')
    out[#out + 1] = message
  end
  out[3], out[4] = string.match(last, '^..........(%d*)(%a*);')
  return out
end

-- When the first of the scheduled messages is due; those that are due now are queued.
local function next_due()
  return tonumber(call('ZRANGE', base .. 'scheduled', 0, 0, 'WITHSCORES')[2])
end
local due = next_due()
if due and due <= now then
  promote()
  due = next_due()
end

local LOOK_MOST, BYTES_MOST, CHUNK = 1000, 4194304, 100
local looked, taken_bytes = 0, 0
local claims, records, taken = {}, {}, {}
local claim = worker .. seq
local fresh = 'R' .. NO_LABEL .. string.rep('0', 12) .. '000001' .. digits(now_us) .. claim

local function is_ours(message)
  return #message > 73 and sub(message, 1, 2) == 'TQ'
    and string.find(sub(message, 13, 44), '^[0-9a-f]+$') ~= nil
end

local function claimed_record(record)
  local counters = counters_of(record)
  local delivery = counted(sub(counters, 13, 18))
  local fence = math.max(tonumber(sub(counters, 19, 34)) + 1, now_us)
  local history = #record >= HEAD and history_of(record) or ''
  return 'R' .. label_of(record) .. sub(counters, 1, 12) .. delivery .. digits(fence) .. claim .. history
end

-- Take one popped message, unless it is not to be run. `known` is its record.
local function accept(lane, sort, message, known)
  if not is_ours(message) then
    set_aside('raw-' .. digits(now_us) .. '-' .. looked, lane, message, 'not a taskq message')
    return
  end
  local id, expires = sub(message, 13, 44), tonumber(sub(message, 45, 57))
  if taken[id] then return end
  if known and sub(known, 1, 1) ~= 'Q' then
    -- Resolved while it was queued; or a copy of a message that is somewhere else.
    if is_terminal(known) then call('PEXPIRE', base .. 'm:' .. id, DAY) end
    return
  end
  if expires and expires > 0 and expires <= now then
    resolve(publish, id, 'e', known or 'Q', '', DAY)
    count('expired')
    return
  end
  if not known then count('unrecorded') end
  taken[id] = true
  local record = (known == 'Q' or not known) and fresh or claimed_record(known)
  records[#records + 1], records[#records + 2] = base .. 'm:' .. id, record
  claims[#claims + 1], claims[#claims + 2] = id .. seq, pack_claimed(lane, message)
  out[#out + 1], out[#out + 2] = record == fresh and sort or sort .. record, message
  return true
end

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
  if #popped == 0 then return 0, 0, empty end
  local ids = {}
  for i, message in ipairs(popped) do ids[i] = base .. 'm:' .. sub(message, 13, 44) end
  local known, accepted = call('MGET', unpack(ids)), 0
  for i, message in ipairs(popped) do
    looked = looked + 1
    if accept(lane, sort, message, known[i]) then accepted = accepted + 1 end
  end
  return #popped, accepted, empty
end

-- The lanes of one priority share what room there is: the one served least comes next.
local left = {}
local function serve(lanes, priority)
  local passes = base .. 'pass:' .. priority
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
        local sort = kind == 't' and caps[task] and 'q' or kind
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

for _, level in ipairs(levels()) do serve(level, level.priority) end

for first = 1, #claims, 1000 do
  local upto = math.min(first + 999, #claims)
  call('HSET', running, unpack(claims, first, upto))
  call('MSET', unpack(records, first, upto))
end
-- Work is left that somebody else may have a slot for.
for kind in pairs(left) do
  ring(digest, kind)
  out[4] = out[4] .. kind
end

-- One worker with room watches for the next due time; the others need not wake for it.
if due and ARGV[6] + ARGV[7] > 0 then
  local holder = call('GET', base .. 'timer')
  if not holder or holder == worker then
    call('SET', base .. 'timer', worker, 'PX', math.max(0, math.ceil(due - now)) + 100)
    out[3] = digits(due)
  end
end
call('HSET', base .. 'seqs', worker, seq .. out[3] .. out[4] .. ';' .. verdicts)
return out
