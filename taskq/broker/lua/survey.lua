-- survey: what is in a queue, for people. Reads only.
-- KEYS  base
-- ARGV
-- Returns {now_ms lanes waiting running workers known counts due}
-- use: core clock lanes running
local lanes = {}
for _, lane in ipairs(call('ZRANGE', base .. 'lanes', 0, -1)) do
  lanes[#lanes + 1] = lane
  lanes[#lanes + 1] = call('LLEN', base .. 'ready:' .. lane)
end
local running, workers = {}, {}
local members = call('ZRANGE', base .. 'workers', 0, -1, 'WITHSCORES')
for i = 1, #members, 2 do
  local held = call('HVALS', base .. 'running:' .. members[i])
  for _, value in ipairs(held) do
    local task = task_of((unpack_claimed(value)))
    running[task] = (running[task] or 0) + 1
  end
  workers[#workers + 1] = name_of(call('HGET', base .. 'names', members[i]))
  workers[#workers + 1] = members[i + 1]
  workers[#workers + 1] = #held
end
local by_task = {}
for task, count in pairs(running) do
  by_task[#by_task + 1] = task
  by_task[#by_task + 1] = count
end
local known = {}
for _, digest in ipairs(call('ZRANGE', base .. 'groups', 0, -1)) do
  for _, task in ipairs(call('HKEYS', base .. 'known:' .. digest)) do known[#known + 1] = task end
end
for _, worker in ipairs(call('ZRANGE', base .. 'orphans', 0, -1)) do
  for _, value in ipairs(call('HVALS', base .. 'orphans:' .. worker)) do
    by_task[#by_task + 1] = task_of((unpack_claimed(value)))
    by_task[#by_task + 1] = 1
  end
end
return {
  digits(now), lanes, call('HGETALL', base .. 'waiting'), by_task, workers, known,
  call('HGETALL', base .. 'counts'),
  call('ZCOUNT', base .. 'scheduled', '-inf', digits(now)),
}
