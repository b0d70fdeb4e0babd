-- schedule: keep messages until their time. All of them, or an error and none.
-- KEYS  base
-- ARGV  (lane due label message)*    due: ms since the epoch, or '+' and ms from now
-- Returns one letter a message: 'o' scheduled, 'd' known already, 'x' known under another task
-- use: core clock records lanes scheduled
local earliest = call('ZRANGE', base .. 'scheduled', 0, 0, 'WITHSCORES')
local first_due = tonumber(earliest[2] or math.huge)
local verdicts, soonest, woken = {}, math.huge, nil

for i = 1, #ARGV, 4 do
  local lane, due, label, message = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  local id = sub(message, 13, 44)
  local known = call('GET', base .. 'm:' .. id)
  if known then
    verdicts[#verdicts + 1] = verdict_on(known, label)
  else
    due = sub(due, 1, 1) == '+' and now + tonumber(due) or tonumber(due)
    local head = 'S' .. (label == '' and NO_LABEL or label) .. UNCLAIMED
    wait_until(id, due, head, lane, '', message)
    if due < soonest then soonest, woken = due, lane end
    verdicts[#verdicts + 1] = 'o'
  end
end
-- Whoever watches for the earliest due time watches for a later one: let it look again.
if soonest < first_due then
  call('DEL', base .. 'timer')
  ring_for(task_of(woken))
end
return table.concat(verdicts)
