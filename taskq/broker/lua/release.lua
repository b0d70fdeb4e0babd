-- release: give back messages that a child has claimed and cannot start.
-- KEYS  base
-- ARGV  publish worker (field)*
-- Returns {released}
-- use: core records lanes cancels running
local publish, worker = ARGV[1], ARGV[2]
local running, fields, released = base .. 'running:' .. worker, {}, 0
call('HDEL', running, '')
for i = 3, #ARGV do fields[#fields + 1] = ARGV[i] end
-- Newest first, so that the oldest is the next to be popped.
table.sort(fields, function(a, b) return sub(a, 33) .. a > sub(b, 33) .. b end)
for _, field in ipairs(fields) do
  local value = call('HGET', running, field)
  local lane, message = unpack_claimed(value or '')
  -- What is no message is for `reclaim` to set aside.
  if lane ~= '' then
    call('HDEL', running, field)
    local id = sub(field, 1, 32)
    local record = read(id) or ('R' .. NO_LABEL .. UNCLAIMED)
    local order = order_for(worker, field)
    if order then
      call_off(publish, worker, id, record, order)
    else
      call('SET', base .. 'm:' .. id, queued(label_of(record), counters_of(record), history_of(record)))
      put_back(lane, message)
    end
    released = released + 1
  end
end
return {released}
