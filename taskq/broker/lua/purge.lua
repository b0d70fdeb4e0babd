-- purge: throw away queued and scheduled messages; their futures raise Cancelled.
-- KEYS  base
-- ARGV  publish reason task    task: '' for all of the queue
-- Returns {purged left}    left: '1' if a further call is needed
-- use: core clock records lanes scheduled
local publish, reason, only = ARGV[1], ARGV[2], ARGV[3]
local MOST = 500
local purged = 0
call('HDEL', base .. 'seqs', '')

local function cancel(id, record)
  if record and is_terminal(record) then
    call('PEXPIRE', base .. 'm:' .. id, DAY)
  else
    resolve(publish, id, 'c', record or 'Q', reason, DAY)
    purged = purged + 1
  end
end

for _, lane in ipairs(call('ZRANGE', base .. 'lanes', 0, -1)) do
  if only == '' or cleared(task_of(lane)) == only then
    local key = base .. 'ready:' .. lane
    local messages = call('RPOP', key, MOST) or {}
    for _, message in ipairs(messages) do
      local id = sub(message, 13, 44)
      if string.find(id, '^[0-9a-f]+$') then cancel(id, read(id)) end
    end
    if call('LLEN', key) > 0 then return {purged, '1'} end
    close_lane(lane)
    if #messages > 0 then return {purged, '1'} end
  end
end

-- Without a task the first page is as good as any; with one, walk past the others.
local cursor = '0'
repeat
  local page = call('ZSCAN', base .. 'scheduled', cursor, 'COUNT', MOST)
  cursor = page[1]
  for i = 1, #page[2], 2 do
    local id = page[2][i]
    local record = read(id)
    if is_waiting(record) and (only == '' or cleared(task_of((parts_of(record)))) == only) then
      unschedule(id, record)
      cancel(id, record)
    end
  end
  if purged >= MOST then return {purged, '1'} end
until cursor == '0'
return {purged, ''}
