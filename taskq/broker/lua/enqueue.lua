-- enqueue: queue messages that are not known yet. All of them, or an error and none.
-- KEYS  base
-- ARGV  (lane label count (message)*count)*
-- Returns one letter a message: 'o' enqueued, 'd' known already, 'x' known under another task
-- use: core records lanes
local lots, ids, at = {}, {}, 1
while at <= #ARGV do
  local upto = at + 2 + tonumber(ARGV[at + 2])
  lots[#lots + 1] = {lane = ARGV[at], label = ARGV[at + 1], first = at + 3, last = upto}
  for i = at + 3, upto do ids[#ids + 1] = base .. 'm:' .. sub(ARGV[i], 13, 44) end
  at = upto + 1
end

local known = call('MGET', unpack(ids))
-- With several lanes, one of a wrong type must refuse before the first write.
if #lots > 1 then
  for _, lot in ipairs(lots) do call('LLEN', base .. 'ready:' .. lot.lane) end
end

local verdicts, records, seen, n = {}, {}, {}, 0
for _, lot in ipairs(lots) do
  local fresh, record = {}, 'Q' .. lot.label
  for i = lot.first, lot.last do
    n = n + 1
    local id = ids[n]
    local earlier = known[n] or seen[id]
    if earlier then
      verdicts[n] = verdict_on(earlier, lot.label)
    else
      verdicts[n], seen[id] = 'o', record
      fresh[#fresh + 1] = ARGV[i]
      records[#records + 1] = id
      records[#records + 1] = record
    end
  end
  -- The first write adds, so that a full Redis refuses here, with nothing done.
  if #fresh > 0 then push(lot.lane, fresh) end
end
for first = 1, #records, 1000 do
  call('MSET', unpack(records, first, math.min(first + 999, #records)))
end
return table.concat(verdicts)
