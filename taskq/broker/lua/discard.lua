-- discard: throw away dead letters: those named, or a task's, or all.
-- KEYS  base
-- ARGV  skip task (id)*    task: '' for any
-- Returns {dropped next}    next: '' or what to skip in a further call
-- use: core lanes
local skip, only = tonumber(ARGV[1]), ARGV[2]
local MOST, BYTES_MOST = 500, 4194304
call('HDEL', base .. 'seqs', '')
local dropped = 0

local function drop(id)
  dropped = dropped + call('ZREM', base .. 'dead', id)
  call('HDEL', base .. 'dead:m', id)
end

if #ARGV > 2 then
  for i = 3, #ARGV do drop(ARGV[i]) end
  return {dropped, ''}
end

local looked, bytes = 0, 0
local ids = call('ZRANGE', base .. 'dead', skip, skip + MOST - 1)
for _, id in ipairs(ids) do
  if bytes >= BYTES_MOST then break end
  looked = looked + 1
  if only == '' then
    drop(id)
  else
    local letter = call('HGET', base .. 'dead:m', id) or '000'
    bytes = bytes + #letter
    local lane = sub(letter, 4, 3 + tonumber(sub(letter, 1, 3)))
    if task_of(lane) == only then drop(id) end
  end
end
if looked < #ids or #ids == MOST then
  return {dropped, digits(skip + looked - dropped)}
end
return {dropped, ''}
