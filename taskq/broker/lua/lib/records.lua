-- Records: the state of a message, in fixed widths. `broker/records.py` reads the same.
--
--   Q                                     queued, never claimed, nothing to note
--   Q label(21)                           the same, with a label
--   S label(21) tail                      scheduled, never claimed; there may be millions
--   state(1) label(21) attempts(6) crashes(3) suspect(3) claims(6) fence(16)
--     worker(32) seq(10) tail             everything else
--
-- label  the task's digest where the id was given (8), the expiry in ms (13)
-- tail   RUNNING, QUEUED: the history. RETRYING: lane, history and message. SCHEDULED: lane
--        and message.
--        Terminal (lower case): the signed report, or words.
local HEAD = 98
local SHORT_HEAD = 22
local NO_MARK = '--------'
local NO_LABEL = NO_MARK .. '0000000000000'
local NEVER = sub(NO_LABEL, 9)

local UNCLAIMED = string.rep('0', 76)

-- Whoever can write to Redis can write what is none of these. Then the numbers would not be
-- numbers, and one record would stop its queue.
local FULL = '^[QRYsfrtkce]........' .. string.rep('%d', 47) .. string.rep('.', 32) .. string.rep('%d', 10)
local LABELLED = '^Q........' .. string.rep('%d', 13) .. '$'
local SCHEDULED = '^S........' .. string.rep('%d', 13) .. '(%d%d%d)'

local function is_sound(record)
  if sub(record, 1, 1) == 'S' then
    local lane = tonumber(string.match(record, SCHEDULED))
    return lane and lane > 0 and #record > SHORT_HEAD + 3 + lane
  end
  if #record < HEAD then return record == 'Q' or string.find(record, LABELLED) ~= nil end
  if not string.find(record, FULL) then return false end
  if sub(record, 1, 1) ~= 'Y' then return true end
  local lane = tonumber(string.match(record, '^%d%d%d', HEAD + 1))
  local history = lane and lane > 0 and tonumber(string.match(record, '^%d%d%d%d%d%d%d', HEAD + 4 + lane))
  return history and #record > HEAD + 10 + lane + history
end

-- The record of a message; false where there is none, or one that no script wrote. MGET, which
-- takes a key of another type for none.
local function read(id)
  local record = call('MGET', base .. 'm:' .. id)[1]
  return record and is_sound(record) and record
end

local function is_terminal(record)
  return string.byte(record) >= 97
end

local function label_of(record)
  return #record > 1 and sub(record, 2, 22) or NO_LABEL
end

-- What to say to a message whose id is known: 'd' enqueued already, 'x' by another task.
-- Only the digest of the task tells; where there is none, the id was generated.
local function verdict_on(record, label)
  local mark, known = sub(label, 1, 8), sub(label_of(record), 1, 8)
  if label == '' or mark == known or known == NO_MARK then return 'd' end
  return 'x'
end

local function is_unclaimed(record)
  return #record < HEAD or sub(record, 1, 1) == 'S'
end

-- attempts to seq
local function counters_of(record)
  return is_unclaimed(record) and UNCLAIMED or sub(record, 23, HEAD)
end

local function history_of(record)
  return sub(record, HEAD + 1)
end

-- worker and seq: the claim under which this message was last handed out
local function claim_of(record)
  return sub(record, 57, HEAD)
end

-- One more, in six digits; there it stops.
local function counted(count)
  return string.format('%06d', math.min(tonumber(count) + 1, 999999))
end

-- The same counters with another number of crashes, and of points of suspicion.
local function suspected(counters, crashes, suspect)
  return sub(counters, 1, 6) .. string.format('%03d', math.min(crashes, 999))
    .. string.format('%03d', math.min(suspect, 999)) .. sub(counters, 13)
end

-- The shortest record of a queued message.
local function queued(label, counters, history)
  if counters ~= UNCLAIMED then return 'Q' .. label .. counters .. history end
  return label == NO_LABEL and 'Q' or 'Q' .. label
end

local function save_terminal(id, record, ttl_ms)
  if ttl_ms then
    call('SET', base .. 'm:' .. id, record, 'PX', ttl_ms)
  else
    call('SET', base .. 'm:' .. id, record)
  end
end

-- Small outcomes travel with the news; 10,000 large ones would overrun the buffer that
-- Redis keeps for a subscriber.
local function announce(publish, id, record)
  call(publish, base .. 'done:' .. id, #record <= 1024 and record or sub(record, 1, 1))
end

-- Record an outcome that is words, not a signed report.
local function resolve(publish, id, state, known, words, ttl_ms)
  local record = state .. label_of(known) .. counters_of(known) .. words
  save_terminal(id, record, ttl_ms)
  announce(publish, id, record)
end
