-- exchange: end attempts and claim messages, in one call. A repeat gets the same reply.
-- KEYS  base
-- ARGV  worker seq digest lease_ms publish threads coroutines letters letter_age_ms lots (kind number count (field payload)*count)*lots (task cap)*
-- Returns {word now_us next_due more verdicts (record message)*}    word: 'ok' | 'lost' | 'stale'
-- use: core clock counts records lanes scheduled dead cancels running
--
-- more      kinds of slot for which work is left; 'x': the worker is to ask for its `orders`
-- lots      ends of attempts, of one kind and number each:
--           's', 'f' payload is the terminal record, number its TTL in ms
--           'y' retry: payload is the history, number the delay in ms
--           'b' release: back to where it came from, uncounted
--           'r' refused, 'c' cancelled: as 's'
-- field     id(32) and claim number(10), as in `running:<worker>`
-- verdicts  one letter a finish: 'k' recorded, 'l' the claim was lost
-- threads, coroutines  free slots; cap: how many messages of a task may come beyond them
-- letters, letter_age_ms  how many dead letters are kept, and for how long
-- record    't', 'c' or 'q' (a thread's, of a task with a cap); and the record, unless this
--           is the message's first claim
local worker, seq, digest, lease = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local publish = ARGV[5]
local room = {t = tonumber(ARGV[6]), c = tonumber(ARGV[7])}
local letters, letter_age = tonumber(ARGV[8]), tonumber(ARGV[9])
local running = base .. 'running:' .. worker

-- What the last exchange was, and what it was answered: seq(10) due(13) more ';' verdicts
local last = call('HGET', base .. 'seqs', worker) or ''
if sub(last, 1, 10) > seq then return {'stale', digits(now_us), '', '', ''} end

-- The claim is gone. Either this is a repeat, or the message was taken back.
local function finish_late(kind, id, claim, payload, ttl)
  local record = call('GET', base .. 'm:' .. id)
  if not record or #record < HEAD or claim_of(record) ~= claim then return 'l' end
  local state = sub(record, 1, 1)
  if state == 'R' then return 'l' end
  if is_terminal(record) or kind == 'y' or kind == 'b' or kind == 'r' then return 'k' end
  -- Taken back and not handed out since: the work is done, so let it count.
  if is_waiting(record) then
    local lane, _, message = parts_of(record)
    unschedule(id, record)
    if kind == 'f' then bury(id, lane, message, payload, letters, letter_age) end
    save_terminal(id, payload, ttl)
  else
    -- Its bytes are still in a list: the claim that meets them sets the TTL, and buries them.
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

-- Whether all claims that end in success held. They were let go of in one call; where one
-- did not hold, the records tell which.
local all_held

local function held(id, claim)
  local record = call('GET', base .. 'm:' .. id)
  return record and sub(record, 1, 1) == 'R' and claim_of(record) == claim
end

-- The last failure: unlike a success it needs the message, for its dead letter.
local function fail(id, field, payload, ttl)
  local claim, key = worker .. sub(field, 33), running
  local value = call('HGET', key, field)
  if not value then
    if not held(id, claim) then return finish_late('f', id, claim, payload, ttl) end
    -- It may be among what is being taken back at this moment.
    key = base .. 'orphans:' .. worker
    value = call('HGET', key, field)
  end
  call('HDEL', key, field)
  if value then
    local lane, message = unpack_claimed(value)
    bury(id, lane, message, payload, letters, letter_age)
  end
  save_terminal(id, payload, ttl)
  announce(publish, id, payload)
  return 'k'
end

-- The head of the record of a message one attempt at which has ended, and is to be made anew.
local function attempted(record)
  local counters = counters_of(record)
  -- It ended as tasks do: it is no suspect any more.
  return 'Y' .. label_of(record) .. counted(sub(counters, 1, 6)) .. sub(counters, 7, 9) .. '000'
    .. sub(counters, 13)
end

local function finish(kind, field, payload, number)
  local id = sub(field, 1, 32)
  if kind == 'f' then return fail(id, field, payload, number) end
  if kind == 's' then
    local claim = worker .. sub(field, 33)
    if not all_held then
      if not held(id, claim) then return finish_late(kind, id, claim, payload, number) end
      -- It may be among what is being taken back at this moment.
      call('HDEL', base .. 'orphans:' .. worker, field)
    end
    save_terminal(id, payload, number)
    announce(publish, id, payload)
    return 'k'
  end
  local value = call('HGET', running, field)
  if not value then return finish_late(kind, id, worker .. sub(field, 33), payload, number) end
  call('HDEL', running, field)
  local lane, message = unpack_claimed(value)
  local record = call('GET', base .. 'm:' .. id) or ('R' .. NO_LABEL .. UNCLAIMED)
  local order = (kind == 'b' or kind == 'y') and order_for(worker, field)
  if order then
    if kind == 'y' then record = attempted(record) end
    call_off(publish, worker, id, record, order)
  elseif kind == 'b' then
    call('SET', base .. 'm:' .. id, queued(label_of(record), counters_of(record), history_of(record)))
    put_back(lane, message)
  elseif kind == 'y' then
    wait_until(id, now + tonumber(number), attempted(record), cleared(lane), payload, message)
    watch_anew(id, cleared(lane))
  else
    if kind == 'r' then
      bury(id, lane, message, payload, letters, letter_age)
      count('refused')
    else
      call('HDEL', base .. 'cancels:' .. worker, id)
    end
    save_terminal(id, payload, number)
    announce(publish, id, payload)
  end
  return 'k'
end

-- A number that Redis would refuse must be refused before the first write.
local at, lots, ending = 11, {}, {}
local least = {s = 1, f = 1, r = 1, c = 1, y = 0, b = 0}
for n = 1, tonumber(ARGV[10]) do
  local kind, number, first = ARGV[at], ARGV[at + 1], at + 3
  at = first + 2 * tonumber(ARGV[at + 2])
  if (tonumber(number) or -1) < least[kind] then
    return redis.error_reply('ERR invalid expire time or delay')
  end
  lots[n] = {kind = kind, number = number, first = first, last = at - 1}
  if kind == 's' then
    for i = first, at - 1, 2 do ending[#ending + 1] = ARGV[i] end
  end
end

local repeated = sub(last, 1, 10) == seq
local verdicts = {}

-- What `finish` does, for the many that succeeded and were held.
local function record_all(lot)
  local record_of, channel_of, ttl_ms = base .. 'm:', base .. 'done:', lot.number
  for i = lot.first, lot.last, 2 do
    local id, report = sub(ARGV[i], 1, 32), ARGV[i + 1]
    call('SET', record_of .. id, report, 'PX', ttl_ms)
    call(publish, channel_of .. id, #report <= 1024 and report or 's')
  end
  verdicts[#verdicts + 1] = string.rep('k', (lot.last - lot.first + 1) / 2)
end

-- The first write removes, if only nothing: a full Redis must drain.
if repeated or #ending == 0 then call('HDEL', running, '') end
if repeated then
  verdicts[1] = string.match(last, ';(.*)$')
else
  all_held = #ending == 0 or call('HDEL', running, unpack(ending)) == #ending
  for _, lot in ipairs(lots) do
    if all_held and lot.kind == 's' then
      record_all(lot)
    else
      for i = lot.first, lot.last, 2 do
        verdicts[#verdicts + 1] = finish(lot.kind, ARGV[i], ARGV[i + 1], lot.number)
      end
    end
  end
end
verdicts = table.concat(verdicts)
local caps = {}
for i = at, #ARGV, 2 do caps[ARGV[i]] = tonumber(ARGV[i + 1]) end

local expiry = call('ZSCORE', base .. 'workers', worker)
if not expiry then return {'lost', digits(now_us), '', '', verdicts} end
if tonumber(expiry) < now + 0.8 * lease then
  call('ZADD', base .. 'workers', digits(now + lease), worker)
end

local out = {'ok', digits(now_us), '', '', verdicts}
local to_cancel = call('EXISTS', base .. 'cancels:' .. worker) == 1 and 'x' or ''
if repeated then
  local held, claimed = call('HGETALL', running), {}
  for i = 1, #held, 2 do
    if sub(held[i], 33) == seq then claimed[#claimed + 1] = {held[i], held[i + 1]} end
  end
  -- Ids are ordered by time.
  table.sort(claimed, function(a, b) return a[1] < b[1] end)
  for _, pair in ipairs(claimed) do
    local lane, message = unpack_claimed(pair[2])
    local task = task_of(lane)
    local kind = call('HGET', base .. 'known:' .. digest, task) or 't'
    local sort = kind == 't' and caps[task] and 'q' or kind
    out[#out + 1] = sort .. (call('GET', base .. 'm:' .. sub(pair[1], 1, 32)) or '')
    out[#out + 1] = message
  end
  out[3], out[4] = string.match(last, '^..........(%d*)(%a*);')
  out[4] = out[4] .. to_cancel
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
local looked, taken_bytes, raw = 0, 0, 0
-- Filled side by side, two places a message; `places` counts them.
local claims, records, taken, places = {}, {}, {}, 0
local claim = worker .. seq
local fresh = 'R' .. NO_LABEL .. string.rep('0', 12) .. '000001' .. digits(now_us) .. claim

-- Whether Lua can read what it must: magic, id and expiry.
local function is_ours(id, message)
  return #message > 73 and sub(message, 1, 2) == 'TQ' and string.find(id, '^%x+$')
    and (sub(message, 45, 57) == NEVER or string.find(sub(message, 45, 57), '^%d+$'))
end

local function claimed_record(record)
  local counters = counters_of(record)
  local delivery = counted(sub(counters, 13, 18))
  local fence = math.max(tonumber(sub(counters, 19, 34)) + 1, now_us)
  local history = #record >= HEAD and history_of(record) or ''
  return 'R' .. label_of(record) .. sub(counters, 1, 12) .. delivery .. digits(fence) .. claim .. history
end

-- Whether a popped message is to be run; if not, see to it. `known` is its record.
local function is_to_run(lane, id, message, known)
  if not is_ours(id, message) then
    local reason = 'not a taskq message'
    raw = raw + 1
    local name = 'raw-' .. digits(now_us) .. '-' .. raw
    bury(name, lane, message, 'r' .. NO_LABEL .. UNCLAIMED .. reason, letters, letter_age)
    count('refused')
    -- Whoever waits for the message whose id these bytes bear, need not.
    if known and sub(known, 1, 1) == 'Q' then resolve(publish, id, 'r', known, reason, DAY) end
    return false
  end
  if taken[id] then return false end
  if known and sub(known, 1, 1) ~= 'Q' then
    -- Resolved while it was queued; or a copy of a message that is somewhere else.
    if is_terminal(known) then met(id, lane, message, known, letters, letter_age) end
    return false
  end
  local expires = sub(message, 45, 57)
  if expires ~= NEVER and tonumber(expires) <= now then
    resolve(publish, id, 'e', known or 'Q', '', DAY)
    count('expired')
    return false
  end
  if not known then count('unrecorded') end
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
  local ids, keys, before = {}, {}, places
  for i, message in ipairs(popped) do
    local id = sub(message, 13, 44)
    ids[i], keys[i] = id, base .. 'm:' .. id
  end
  local known, head = call('MGET', unpack(keys)), pack_claimed(lane, '')
  looked = looked + #popped
  for i, message in ipairs(popped) do
    local id, record = ids[i], known[i]
    -- Of most messages there is no more to know than this.
    local plain = record == 'Q' and not taken[id] and sub(message, 45, 57) == NEVER
    if plain or is_to_run(lane, id, message, record) then
      taken[id] = true
      record = (plain or not record or record == 'Q') and fresh or claimed_record(record)
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
-- Who could not promote all that is due comes again at once.
if due and (due <= now or room.t + room.c > 0) then
  local holder = call('GET', base .. 'timer')
  if not holder or holder == worker then
    call('SET', base .. 'timer', worker, 'PX', math.max(0, math.ceil(due - now)) + 100)
    out[3] = digits(due)
  end
end
call('HSET', base .. 'seqs', worker, seq .. out[3] .. out[4] .. ';' .. verdicts)
out[4] = out[4] .. to_cancel
return out
