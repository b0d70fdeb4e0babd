-- Lanes and bells. Needs core.
local function task_of(lane)
  return string.match(lane, '^[^:]*')
end

-- Where suspects wait: those that may have killed a process. Only children with one slot
-- know their tasks by this name, so that each is handed out alone.
local function apart(lane)
  return sub(lane, 1, 1) == '!' and lane or '!' .. lane
end

-- The lane of a message that is above suspicion again.
local function cleared(lane)
  return sub(lane, 1, 1) == '!' and sub(lane, 2) or lane
end

local function priority_of(lane)
  return string.match(lane, ':(%d)$') or '5'
end

-- A lane that was empty is not any more. It starts level with the one of its priority
-- that was served least: at zero it would starve the others until it had caught up.
local function open_lane(lane)
  local priority = priority_of(lane)
  local passes = base .. 'pass:' .. priority
  call('ZADD', base .. 'lanes', priority, lane)
  call('ZADD', passes, call('ZRANGE', passes, 0, 0, 'WITHSCORES')[2] or 0, lane)
end

local function close_lane(lane)
  call('ZREM', base .. 'lanes', lane)
  call('ZREM', base .. 'pass:' .. priority_of(lane), lane)
end

local function ring(digest, kind)
  local bell = base .. 'bell:' .. digest .. ':' .. kind
  if call('LLEN', bell) == 0 then
    call('LPUSH', bell, '1')
    call('PEXPIRE', bell, 60000)
  end
end

-- Wake one worker of each group that knows the task.
local groups
local function ring_for(task)
  groups = groups or call('ZRANGE', base .. 'groups', 0, -1)
  for _, digest in ipairs(groups) do
    local kind = call('HGET', base .. 'known:' .. digest, task)
    if kind then ring(digest, kind) end
  end
end

-- Queue messages, the first of the list to be claimed first.
local function push(lane, messages)
  if call('LPUSH', base .. 'ready:' .. lane, unpack(messages)) == #messages then
    open_lane(lane)
  end
  ring_for(task_of(lane))
end

-- Give a message back to the end it was taken from.
local function put_back(lane, message)
  if call('RPUSH', base .. 'ready:' .. lane, message) == 1 then open_lane(lane) end
  ring_for(task_of(lane))
end
