-- letters: dead letters, the newest first; or the one of an id. Reads only.
-- KEYS  base
-- ARGV  age_ms skip most id    id: '' for any
-- Returns {next (id died letter)*}    next: how many to skip for more, or ''
-- use: core clock
local age, skip, most, only = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local BYTES_MOST = 4194304
if only ~= '' then
  local died = call('ZSCORE', base .. 'dead', only)
  local letter = died and call('HGET', base .. 'dead:m', only)
  return letter and {'', only, died, letter} or {''}
end

local out, bytes = {''}, 0
local oldest = '(' .. digits(now - age)
local found = call('ZREVRANGEBYSCORE', base .. 'dead', '+inf', oldest, 'WITHSCORES', 'LIMIT', skip, most)
for i = 1, #found, 2 do
  if bytes >= BYTES_MOST then
    out[1] = digits(skip + (i - 1) / 2)
    return out
  end
  local letter = call('HGET', base .. 'dead:m', found[i])
  if letter then
    bytes = bytes + #letter
    out[#out + 1], out[#out + 2], out[#out + 3] = found[i], found[i + 1], letter
  end
end
if #found == 2 * most then out[1] = digits(skip + most) end
return out
