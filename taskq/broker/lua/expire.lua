-- expire: resolve a message that did not start before its expiry, though nobody pops it.
-- KEYS  base
-- ARGV  publish id
-- Returns 'ok' | 'no'    (no: it started, has no expiry, or its time has not come)
-- use: core clock counts records lanes scheduled
local publish, id = ARGV[1], ARGV[2]
call('HDEL', base .. 'seqs', '')
local record = read(id)
if not record or #record < 22 then return 'no' end
local expires = tonumber(sub(record, 10, 22))
if expires == 0 or expires > now then return 'no' end
local state = sub(record, 1, 1)
if state == 'S' or state == 'Y' then
  unschedule(id, record)
  resolve(publish, id, 'e', record, '', DAY)
elseif state == 'Q' then
  -- Its bytes are still in a list: the claim that meets them sets the TTL.
  resolve(publish, id, 'e', record, '')
else
  return 'no'
end
count('expired')
return 'ok'
