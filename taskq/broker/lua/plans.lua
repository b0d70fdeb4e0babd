-- plans: the schedules of a queue, page by page; or those named. Reads only.
-- KEYS  base
-- ARGV  cursor most (name)*
-- Returns {now cursor (name definition state due declared)*}    cursor: of the next page, '0' the end
-- use: core clock
-- due, declared  when the next tick is to be fired, until when some worker's code vouches; or ''
local out, names = {digits(now), '0'}, {}
if #ARGV > 2 then
  for i = 3, #ARGV do names[#names + 1] = ARGV[i] end
else
  local page = call('HSCAN', base .. 'fires', ARGV[1], 'COUNT', ARGV[2])
  out[2] = page[1]
  for i = 1, #page[2], 2 do names[#names + 1] = page[2][i] end
end
for _, name in ipairs(names) do
  local state = call('HGET', base .. 'fires', name)
  if state then
    out[#out + 1], out[#out + 2] = name, call('HGET', base .. 'schedules', name) or ''
    out[#out + 1], out[#out + 2] = state, call('ZSCORE', base .. 'ticks', name) or ''
    out[#out + 1] = call('ZSCORE', base .. 'declared', name) or ''
  end
end
return out
