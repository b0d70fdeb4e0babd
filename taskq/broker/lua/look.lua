-- look: the record of a message, and the message itself where it can be had. Reads only.
-- KEYS  base
-- ARGV  id task    task: '' where the asker does not know it
-- Returns {record message due worker known}    each '' where there is none; known: 'y' | 'n'
-- use: core records lanes scheduled running
local id = ARGV[1]
local record = call('MGET', base .. 'm:' .. id)[1]
if not record or not is_sound(record) then return {record or '', '', '', '', ''} end
local message, name, known = '', '', ''

-- Whether some worker knows the task of a message that waits.
local function is_known(task)
  for _, digest in ipairs(call('ZRANGE', base .. 'groups', 0, -1)) do
    if call('HEXISTS', base .. 'known:' .. digest, task) == 1 then return 'y' end
  end
  return 'n'
end

if is_waiting(record) then
  local lane, _, bytes = parts_of(record)
  message, known = bytes, is_known(task_of(lane))
elseif sub(record, 1, 1) == 'Q' and ARGV[2] ~= '' then
  known = is_known(ARGV[2])
end
if #record >= HEAD and message == '' then
  local worker = sub(record, 57, 88)
  name = name_of(call('HGET', base .. 'names', worker))
  if sub(record, 1, 1) == 'R' then
    local value = call('HGET', base .. 'running:' .. worker, id .. sub(record, 89, 98))
    if value then
      local _, bytes = unpack_claimed(value)
      message = bytes
    end
  end
end
return {record, message, call('ZSCORE', base .. 'scheduled', id) or '', name, known}
