-- What was set aside for people to look at. Needs core and clock.
local DEAD_MOST, DEAD_AGE = 10000, 90 * DAY

local function count(what)
  call('HINCRBY', base .. 'counts', what, 1)
  call('PEXPIRE', base .. 'counts', DEAD_AGE)
end

local function forget_dead(ids)
  if #ids == 0 then return end
  call('ZREM', base .. 'dead', unpack(ids))
  call('HDEL', base .. 'dead:m', unpack(ids))
end

-- Keep the bytes under `id`, with the reason, as `<length of reason><reason><lane>:<bytes>`.
local function set_aside(id, lane, message, reason)
  call('ZADD', base .. 'dead', digits(now), id)
  call('HSET', base .. 'dead:m', id,
    string.format('%04d', #reason) .. reason .. string.format('%03d', #lane) .. lane .. message)
  forget_dead(call('ZRANGEBYSCORE', base .. 'dead', '-inf', digits(now - DEAD_AGE), 'LIMIT', 0, 100))
  forget_dead(call('ZRANGE', base .. 'dead', 0, -DEAD_MOST - 1))
  call('PEXPIRE', base .. 'dead', DEAD_AGE)
  call('PEXPIRE', base .. 'dead:m', DEAD_AGE)
  count('refused')
end
