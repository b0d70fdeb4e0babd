-- schedule: keep messages until their time. All of them, or an error and none.
-- KEYS  base
-- ARGV  (lane due label count (message)*count)*    due: ms since the epoch, or '+' and ms from now
-- Returns one letter a message: 'o' scheduled, 'd' known already, 'x' known under another task
-- use: core clock due records lanes scheduled
local lots, ids, keys, at = {}, {}, {}, 1
while at <= #ARGV do
  local due, upto = due_at(ARGV[at + 1]), at + 3 + tonumber(ARGV[at + 3])
  if not due then return redis.error_reply('ERR not a due time') end
  lots[#lots + 1] = {lane = ARGV[at], due = due, label = ARGV[at + 2], first = at + 4, last = upto}
  for i = at + 4, upto do
    local id = sub(ARGV[i], 13, 44)
    ids[#ids + 1], keys[#keys + 1] = id, base .. 'm:' .. id
  end
  at = upto + 1
end
local known = call('MGET', unpack(keys))
local earliest = first_due()
local verdicts, scores, records, counts, seen, n = {}, {}, {}, {}, {}, 0
local soonest, woken = math.huge, nil
for _, lot in ipairs(lots) do
  local label, due, fresh = lot.label, digits(lot.due), 0
  local head = 'S' .. (label == '' and NO_LABEL or label)
    .. string.format('%03d', #lot.lane) .. lot.lane
  for i = lot.first, lot.last do
    n = n + 1
    local id = ids[n]
    local earlier = known[n] or seen[id]
    if earlier then
      verdicts[n] = verdict_on(earlier, label)
    else
      verdicts[n], seen[id], fresh = 'o', head, fresh + 1
      scores[#scores + 1], scores[#scores + 2] = due, id
      records[#records + 1], records[#records + 2] = keys[n], head .. ARGV[i]
    end
  end
  if fresh > 0 then
    local task = task_of(lot.lane)
    counts[task] = (counts[task] or 0) + fresh
    if lot.due < soonest then soonest, woken = lot.due, lot.lane end
  end
end
-- The first write adds, so that a full Redis refuses here, with nothing done.
for first = 1, #scores, 1000 do
  local upto = math.min(first + 999, #scores)
  call('ZADD', base .. 'scheduled', unpack(scores, first, upto))
  call('MSET', unpack(records, first, upto))
end
for task, count in pairs(counts) do call('HINCRBY', base .. 'waiting', task, count) end
if soonest < earliest then watch_for(woken) end
return table.concat(verdicts)
