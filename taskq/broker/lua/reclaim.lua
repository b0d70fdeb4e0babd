-- reclaim: take back the messages of a dead child, or of all whose lease ran out.
-- KEYS  base
-- ARGV  lease_ms tick_ms publish worker    worker: '' for all that expired
-- Returns {taken left}    left: '1' if a further call is needed
-- use: core clock records lanes running
local lease, tick, publish, target = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], ARGV[4]
local MOST = 500
call('HDEL', base .. 'seqs', '')

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
local function disown(worker)
  call('ZREM', base .. 'workers', worker)
  leave_group(worker)
  call('HDEL', base .. 'seqs', worker)
  if call('GET', base .. 'timer') == worker then call('DEL', base .. 'timer') end
  local running, orphans = base .. 'running:' .. worker, base .. 'orphans:' .. worker
  if call('EXISTS', running) == 0 then return end
  -- Not all may be back that it held when it was taken for dead before.
  for _, field in ipairs(call('EXISTS', orphans) == 1 and call('HKEYS', running) or {}) do
    call('HSET', orphans, field, call('HGET', running, field))
    call('HDEL', running, field)
  end
  if call('EXISTS', running) == 1 then call('RENAME', running, orphans) end
  call('ZADD', base .. 'orphans', digits(now), worker)
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
  disown(target)
elseif not on_hold() then
  -- After a clock that jumped back, no lease may seem to last for ever.
  local most = digits(now + 2 * lease)
  for _, worker in ipairs(call('ZRANGEBYSCORE', base .. 'workers', '(' .. most, '+inf', 'LIMIT', 0, 100)) do
    call('ZADD', base .. 'workers', digits(now + lease), worker)
  end
  for _, worker in ipairs(call('ZRANGEBYSCORE', base .. 'workers', '-inf', digits(now), 'LIMIT', 0, 100)) do
    disown(worker)
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

local function take_back(field, value)
  local id = sub(field, 1, 32)
  local lane, message = unpack_claimed(value)
  local record = call('GET', base .. 'm:' .. id) or ('R' .. NO_LABEL .. UNCLAIMED)
  if is_terminal(record) then
    call('PEXPIRE', base .. 'm:' .. id, DAY)
    return
  end
  call('SET', base .. 'm:' .. id, queued(label_of(record), counters_of(record), history_of(record)))
  put_back(lane, message)
end

local taken = 0
for _, worker in ipairs(call('ZRANGE', base .. 'orphans', 0, -1)) do
  local key = base .. 'orphans:' .. worker
  for _, field in ipairs(in_order(call('HGETALL', key))) do
    if taken >= MOST then return {taken, '1'} end
    call('HDEL', key, field[2])
    take_back(field[2], field[3])
    taken = taken + 1
  end
  call('ZREM', base .. 'orphans', worker)
end
return {taken, ''}
