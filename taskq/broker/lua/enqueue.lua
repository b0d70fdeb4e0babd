-- enqueue: queue messages that are not known yet. All of them, or an error and none.
-- KEYS  base
-- ARGV  (lane count (label message)*count)*
-- Returns one letter a message: 'o' enqueued, 'd' known already, 'x' known under another task
-- use: core records lanes
local lanes, ids, labels, messages, sizes = {}, {}, {}, {}, {}
local at = 1
while at <= #ARGV do
  local size = tonumber(ARGV[at + 1])
  lanes[#lanes + 1], sizes[#sizes + 1] = ARGV[at], size
  for i = at + 2, at + 2 * size, 2 do
    labels[#labels + 1], messages[#messages + 1] = ARGV[i], ARGV[i + 1]
    ids[#ids + 1] = base .. 'm:' .. sub(ARGV[i + 1], 13, 44)
  end
  at = at + 2 + 2 * size
end

local known = call('MGET', unpack(ids))
-- With several lanes, one of a wrong type must refuse before the first write.
if #lanes > 1 then
  for _, lane in ipairs(lanes) do call('LLEN', base .. 'ready:' .. lane) end
end

local verdicts, records, seen, i = {}, {}, {}, 0
for l, lane in ipairs(lanes) do
  local fresh = {}
  for _ = 1, sizes[l] do
    i = i + 1
    if known[i] then
      verdicts[i] = verdict_on(known[i], labels[i])
    elseif seen[ids[i]] then
      verdicts[i] = verdict_on('Q' .. seen[ids[i]], labels[i])
    else
      verdicts[i], seen[ids[i]] = 'o', labels[i]
      fresh[#fresh + 1] = messages[i]
      records[#records + 1], records[#records + 2] = ids[i], 'Q' .. labels[i]
    end
  end
  -- The first write adds, so that a full Redis refuses here, with nothing done.
  if #fresh > 0 then push(lane, fresh) end
end
for first = 1, #records, 1000 do
  call('MSET', unpack(records, first, math.min(first + 999, #records)))
end
return table.concat(verdicts)
