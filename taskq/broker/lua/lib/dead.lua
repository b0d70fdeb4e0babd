-- Dead letters: what ended badly, kept for people. Needs core, clock,
-- counts, records and lanes.
-- A letter is `<length of lane(3)><lane><length of record(8)><record><message>`. Its record is
-- the terminal one, so the report in it can be verified for as long as the letter lives.
local function forget_dead(ids)
  if #ids == 0 then return end
  call('ZREM', base .. 'dead', unpack(ids))
  call('HDEL', base .. 'dead:m', unpack(ids))
end

-- The older of two deaths under one id gives way. `most` letters are kept, for `age` ms.
local function bury(id, lane, message, record, most, age)
  lane = sub(cleared(lane), 1, 999)
  call('ZADD', base .. 'dead', digits(now), id)
  call('HSET', base .. 'dead:m', id,
    string.format('%03d', #lane) .. lane .. string.format('%08d', #record) .. record .. message)
  forget_dead(call('ZRANGEBYSCORE', base .. 'dead', '-inf', digits(now - age), 'LIMIT', 0, 1000))
  local excess = call('ZCARD', base .. 'dead') - most
  -- More than one where the setting was lowered; the rest go with the next burials.
  if excess > 0 then forget_dead(call('ZRANGE', base .. 'dead', 0, math.min(excess, 1000) - 1)) end
  call('PEXPIRE', base .. 'dead', age)
  call('PEXPIRE', base .. 'dead:m', age)
end

-- The bytes of a message are met that ended while they lay in a list.
local function met(id, lane, message, record, most, age)
  local key = base .. 'm:' .. id
  if sub(record, 1, 1) == 'f' and call('PTTL', key) == -1 then
    bury(id, lane, message, record, most, age)
  end
  call('PEXPIRE', key, DAY)
end

-- Bytes that none of ours put there are kept under a name of their own. `known`, where there is
-- one, is the record of the message whose id they bear: whoever waits for it need not.
local strange = 0
local function set_aside(publish, id, lane, bytes, known, reason, most, age)
  strange = strange + 1
  local name = 'raw-' .. digits(now_us) .. '-' .. strange
  bury(name, lane, bytes, 'r' .. NO_LABEL .. UNCLAIMED .. reason, most, age)
  count('refused')
  if known then resolve(publish, id, 'r', known, reason, DAY) end
end
