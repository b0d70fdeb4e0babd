-- enqueue: queue messages that are not known yet. All of them, or an error and none.
-- KEYS  base
-- ARGV  (lane label count (message)*count)*
-- Returns one letter a message: 'o' enqueued, 'd' known already, 'x' known under another task
-- use: core lanes
-- seldom: records lanes
local size = #ARGV

-- One message, as most calls have it: the tables that many need took half of its time.
if size == 4 then
  local lane, label, message = ARGV[1], ARGV[2], ARGV[4]
  local id = base .. 'm:' .. sub(message, 13, 44)
  local known = call('MGET', id)[1]
  if known then return seldom().verdict_on(known, label) end
  -- The first write adds, so that a full Redis refuses here, with nothing done.
  if call('LPUSH', base .. 'ready:' .. lane, message) == 1 then seldom().open_lane(lane) end
  ring_for(task_of(lane))
  call('SET', id, 'Q' .. label)
  return 'o'
end

local lots, ids, records, seen, n, at = {}, {}, {}, {}, 0, 1
local twice = false
while at <= size do
  local label, first = ARGV[at + 1], at + 3
  local last, record = at + 2 + tonumber(ARGV[at + 2]), 'Q' .. label
  lots[#lots + 1] = {lane = ARGV[at], label = label, messages = ARGV, first = first, last = last}
  for i = first, last do
    local id = base .. 'm:' .. sub(ARGV[i], 13, 44)
    n = n + 1
    ids[n], records[2 * n - 1], records[2 * n] = id, id, record
    twice, seen[id] = twice or seen[id], true
  end
  at = last + 1
end

-- Mostly none is known: to count those costs half of what it takes to read them.
local verdicts = twice or call('EXISTS', unpack(ids)) > 0
if verdicts then
  local known = call('MGET', unpack(ids))
  verdicts, records, seen, n = {}, {}, {}, 0
  for _, lot in ipairs(lots) do
    local fresh, record = {}, 'Q' .. lot.label
    for i = lot.first, lot.last do
      n = n + 1
      local id = ids[n]
      local earlier = known[n] or seen[id]
      if earlier then
        verdicts[n] = seldom().verdict_on(earlier, lot.label)
      else
        verdicts[n], seen[id] = 'o', record
        fresh[#fresh + 1] = ARGV[i]
        records[#records + 1] = id
        records[#records + 1] = record
      end
    end
    lot.messages, lot.first, lot.last = fresh, 1, #fresh
  end
end

-- With several lanes, one of a wrong type must refuse before the first write.
if #lots > 1 then
  for _, lot in ipairs(lots) do call('LLEN', base .. 'ready:' .. lot.lane) end
end
-- The first write adds, as above.
for _, lot in ipairs(lots) do
  if lot.first <= lot.last then
    local key, added = base .. 'ready:' .. lot.lane, lot.last - lot.first + 1
    local length = call('LPUSH', key, unpack(lot.messages, lot.first, lot.last))
    if length == added then seldom().open_lane(lot.lane) end
    ring_for(task_of(lot.lane))
  end
end
for first = 1, #records, 1000 do
  call('MSET', unpack(records, first, math.min(first + 999, #records)))
end
return verdicts and table.concat(verdicts) or string.rep('o', n)
