-- reclaim: take back the messages of a dead child, or of all whose lease ran out.
-- KEYS  base
-- ARGV  lease_ms tick_ms publish worker digest letters letter_age_ms members (member)*members (blame field budget reason)*    worker: '' for all that expired
-- Returns {taken left suspects (forgotten)*}    left: '1' if a further call is needed
-- use: core clock counts records lanes scheduled dead cancels running leases
--
-- members   children of the caller that ask of themselves only now and then: their leases are
--           renewed, and bells rung that nobody may have heard
-- blame     what the death of the worker has to do with a message that it ran:
--           'k' caused it: one crash more; at `budget` crashes the message is over
--           't' it was killed for this one, which ran past its hard limit: that fails
--           's' perhaps caused it     'i' ran when another one caused it
-- reason    the words that its future raises
-- forgotten those of `members` that are none, or whose tasks nobody knows any more
-- suspects  how many wait to be handed out alone, of tasks that are known by `digest`
--
-- Points of suspicion: 's' counts for two, 'i' for one, as does a worker of which nothing is
-- known but that its lease ran out. From two on, and after a crash, a message is handed out
-- alone: then the next death has one cause, or another one.
local lease, tick, publish, target = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], ARGV[4]
local letters, letter_age = tonumber(ARGV[6]), tonumber(ARGV[7])
local ALONE_FROM = 2
-- Nothing is charged for the loss of a whole host. But none may go on losing hosts for ever.
local LOST_MOST = 20
local POINTS = {s = 2, i = 1}
local MOST = 500
local MOST_RUNG = 100
local members = tonumber(ARGV[8])
call('HDEL', base .. 'seqs', '')

local forgotten, known = {}, members > 0 and keep_known(ARGV[5])
for i = 9, 8 + members do
  if not renew_lease(ARGV[i], lease) or not known then forgotten[#forgotten + 1] = ARGV[i] end
end

-- A group without a worker is not rung for, nor does anybody know its tasks.
local function leave_group(worker)
  local digest = digest_of(call('HGET', base .. 'names', worker))
  call('HDEL', base .. 'names', worker)
  for _, other in ipairs(call('HVALS', base .. 'names')) do
    if digest_of(other) == digest then return end
  end
  call('ZREM', base .. 'groups', digest)
end

-- From here on the worker can claim nothing, and its finishes count only if nobody else
-- took the message over.
local function disown(worker, points)
  call('ZREM', base .. 'workers', worker)
  leave_group(worker)
  call('HDEL', base .. 'seqs', worker)
  if call('GET', base .. 'timer') == worker then call('DEL', base .. 'timer') end
  local running, orphans = base .. 'running:' .. worker, base .. 'orphans:' .. worker
  if call('EXISTS', running) == 0 then
    if call('EXISTS', orphans) == 0 then call('DEL', base .. 'cancels:' .. worker) end
    return
  end
  -- Not all may be back that it held when it was taken for dead before.
  for _, field in ipairs(call('EXISTS', orphans) == 1 and call('HKEYS', running) or {}) do
    call('HSET', orphans, field, call('HGET', running, field))
    call('HDEL', running, field)
  end
  if call('EXISTS', running) == 1 then call('RENAME', running, orphans) end
  call('ZADD', base .. 'orphans', points, worker)
end

-- An outage is not a death: after a gap in the ticks (Redis was away, its clock jumped)
-- the workers get one lease to come back and deliver what they kept.
local function on_hold()
  local last = tonumber(call('GET', base .. 'tick') or 0)
  call('SET', base .. 'tick', digits(now), 'PX', DAY)
  if last > 0 and (now - last > 3 * tick or now < last) then
    call('SET', base .. 'hold', digits(now + lease), 'PX', lease)
  end
  local hold = tonumber(call('GET', base .. 'hold') or 0)
  return hold > now and hold <= now + lease
end

if target ~= '' then
  disown(target, 0)
elseif not on_hold() then
  -- After a clock that jumped back, no lease may seem to last for ever.
  local most = digits(now + 2 * lease)
  for _, worker in ipairs(call('ZRANGEBYSCORE', base .. 'workers', '(' .. most, '+inf', 'LIMIT', 0, 100)) do
    call('ZADD', base .. 'workers', digits(now + lease), worker)
  end
  for _, worker in ipairs(call('ZRANGEBYSCORE', base .. 'workers', '-inf', digits(now), 'LIMIT', 0, 100)) do
    disown(worker, 1)
  end
  call('ZREMRANGEBYSCORE', base .. 'groups', '-inf', digits(now))
end

-- Newest first, so that the oldest is the next to be popped.
local function in_order(held)
  local fields = {}
  for i = 1, #held, 2 do fields[#fields + 1] = {sub(held[i], 33) .. sub(held[i], 1, 32), held[i], held[i + 1]} end
  table.sort(fields, function(a, b) return a[1] > b[1] end)
  return fields
end

-- The message is over, by these words; people find it among the dead letters.
local function give_up(letter, id, lane, message, record, words)
  resolve(publish, id, letter, record, words, DAY)
  bury(id, lane, message, call('GET', base .. 'm:' .. id), letters, letter_age)
end

-- Queue a message again, with `points` more of suspicion, after `delay` ms.
local function take_back(id, lane, message, record, points, delay)
  local counters, history = counters_of(record), history_of(record)
  local suspect = tonumber(sub(counters, 10, 12)) + points
  if points > 0 then counters = suspected(counters, tonumber(sub(counters, 7, 9)), suspect) end
  if suspect >= LOST_MOST then
    give_up('k', id, lane, message, record, 'was there when too many workers were lost')
  elseif suspect < ALONE_FROM or delay == 0 then
    call('SET', base .. 'm:' .. id, queued(label_of(record), counters, history))
    put_back(suspect < ALONE_FROM and lane or apart(lane), message)
  else
    wait_until(id, now + delay, 'Y' .. label_of(record) .. counters, apart(lane), history, message)
  end
end

-- Do what the blame asks for: at most give the message up, at least nothing.
local function judge(id, lane, message, record, blame)
  local counters = counters_of(record)
  local suspect = tonumber(sub(counters, 10, 12))
  local crashes = tonumber(sub(counters, 7, 9)) + (blame.letter == 'k' and 1 or 0)
  local over = blame.letter == 't' or (blame.letter == 'k' and crashes >= blame.budget)
  if over then counters = counted(sub(counters, 1, 6)) .. sub(counters, 7) end
  record = 'R' .. label_of(record) .. suspected(counters, crashes, suspect) .. history_of(record)
  if over then
    give_up(blame.letter, id, lane, message, record, blame.reason)
  else
    -- One that is known to kill is alone from now on; it need not be suspected more and more.
    local points = blame.letter == 'k' and math.max(ALONE_FROM - suspect, 0) or POINTS[blame.letter]
    take_back(id, lane, message, record, points, 0)
  end
end

local blames, taken = {}, 0
for i = 9 + members, #ARGV, 4 do
  blames[ARGV[i + 1]] = {letter = ARGV[i], budget = tonumber(ARGV[i + 2]), reason = ARGV[i + 3]}
end

local function settle(worker, points, field, value)
  local id = sub(field, 1, 32)
  local found = read(id)
  local record = found or ('R' .. NO_LABEL .. UNCLAIMED)
  if is_terminal(record) then
    call('PEXPIRE', base .. 'm:' .. id, DAY)
    return
  end
  local order = order_for(worker, field)
  if order then return call_off(publish, worker, id, record, order) end
  local lane, message = unpack_claimed(value)
  if lane == '' then
    set_aside(publish, id, lane, message, found, 'what was claimed is no message', letters, letter_age)
  elseif worker == target and blames[field] then
    judge(id, lane, message, record, blames[field])
  else
    -- Some hosts are lost together: not all suspects begin again in one moment.
    take_back(id, lane, message, record, points, points > 0 and 1000 + now_us % 4000 or 0)
  end
end

local function drain()
  local workers = call('ZRANGE', base .. 'orphans', 0, -1, 'WITHSCORES')
  for i = 1, #workers, 2 do
    local worker, key = workers[i], base .. 'orphans:' .. workers[i]
    for _, field in ipairs(in_order(call('HGETALL', key))) do
      if taken >= MOST then return '1' end
      call('HDEL', key, field[2])
      settle(worker, tonumber(workers[i + 1]), field[2], field[3])
      taken = taken + 1
    end
    call('ZREM', base .. 'orphans', worker)
    call('DEL', base .. 'cancels:' .. worker)
  end
  return ''
end

local rest, suspects = drain(), 0
for _, lane in ipairs(call('ZRANGE', base .. 'lanes', 0, -1)) do
  if cleared(lane) ~= lane and call('HEXISTS', base .. 'known:' .. ARGV[5], task_of(cleared(lane))) == 1 then
    suspects = suspects + call('LLEN', base .. 'ready:' .. lane)
  end
end

-- A ring may have been lost with the connection of whoever was to hear it, and with a child
-- the watch for what is due next.
if members > 0 then
  for _, lane in ipairs(call('ZREVRANGE', base .. 'lanes', 0, MOST_RUNG - 1)) do ring_for(task_of(lane)) end
  local waiting = first_lane()
  if waiting and call('EXISTS', base .. 'timer') == 0 then ring_for(task_of(waiting)) end
end
return {taken, rest, suspects, unpack(forgotten)}
