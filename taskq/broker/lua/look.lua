-- look: the record of a message, and the message itself where it can be had. Reads only.
-- KEYS  base
-- ARGV  id
-- Returns {record message due worker}    each '' where there is none
-- use: core records lanes scheduled running
local id = ARGV[1]
local record = call('GET', base .. 'm:' .. id)
if not record then return {'', '', '', ''} end
local message, name = '', ''
if is_waiting(record) then
  local _, _, bytes = parts_of(record)
  message = bytes
elseif #record >= HEAD then
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
return {record, message, call('ZSCORE', base .. 'scheduled', id) or '', name}
