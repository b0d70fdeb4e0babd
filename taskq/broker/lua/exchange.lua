-- exchange: end attempts and claim messages, in one call. A repeat gets the same reply.
-- KEYS  base
-- ARGV  worker seq digest lease_ms publish threads coroutines letters letter_age_ms lots (kind number count (field payload)*count)*lots (task cap)*
-- Returns {word now_us next_due more verdicts (record message)*}    word: 'ok' | 'lost' | 'stale'
-- use: core clock due records lanes running
--
-- more      kinds of slot for which work is left; 'x': the worker is to ask for its `orders`
-- lots      ends of attempts, of one kind and number each:
--           's', 'f' payload is the terminal record, number its TTL in ms
--           'y' retry: payload is the history, number the delay in ms
--           'b' release: back to where it came from, uncounted
--           'r' refused, 'c' cancelled: as 's'
-- field     id(32) and claim number(10), as in `running:<worker>`
-- verdicts  one letter a finish: 'k' recorded, 'l' the claim was lost
-- threads, coroutines  free slots; cap: how many messages of a task may come beyond them
-- letters, letter_age_ms  how many dead letters are kept, and for how long
-- record    't' or 'c', of a task with a cap 'q' or 'd' instead; and the record, unless this
--           is the message's first claim
local worker, seq, digest, lease = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local publish = ARGV[5]
local room = {t = tonumber(ARGV[6]), c = tonumber(ARGV[7])}
local letters, letter_age = tonumber(ARGV[8]), tonumber(ARGV[9])
local running = base .. 'running:' .. worker

-- What the last exchange was, and what it was answered: seq(10) due(13) more ';' verdicts
local last = call('HGET', base .. 'seqs', worker) or ''
if sub(last, 1, 10) > seq then return {'stale', digits(now_us), '', '', ''} end

-- What was claimed so far: bytes looked at, messages looked at, what goes into `running` and the
-- records (side by side, two places a message; `places` counts them), and the ids.
local taken_bytes, looked = 0, 0
local claims, records, places, taken = {}, {}, 0, {}
local claim, caps = worker .. seq, {}
local AHEAD = {t = 'q', c = 'd'}
-- Whether all claims that end in success held. They were let go of in one call; where one
-- did not hold, the records tell which.
local all_held

-- seldom: counts records lanes running scheduled dead cancels ends doubts arrivals

-- What `finish` does, written out for the many that succeeded and were held.
local function record_all(lot, verdicts)
  local record_of, channel_of, ttl_ms = base .. 'm:', base .. 'done:', lot.number
  for i = lot.first, lot.last, 2 do
    local id, report = sub(ARGV[i], 1, 32), ARGV[i + 1]
    call('SET', record_of .. id, report, 'PX', ttl_ms)
    call(publish, channel_of .. id, #report <= 1024 and report or 's')
  end
  verdicts[#verdicts + 1] = string.rep('k', (lot.last - lot.first + 1) / 2)
end

-- A number that Redis would refuse must be refused before the first write.
local at, lots, ending = 11, {}, {}
local least = {s = 1, f = 1, r = 1, c = 1, y = 0, b = 0}
for n = 1, tonumber(ARGV[10]) do
  local kind, number, first = ARGV[at], ARGV[at + 1], at + 3
  at = first + 2 * tonumber(ARGV[at + 2])
  if (tonumber(number) or -1) < least[kind] then
    return redis.error_reply('ERR invalid expire time or delay')
  end
  lots[n] = {kind = kind, number = number, first = first, last = at - 1}
  if kind == 's' then
    for i = first, at - 1, 2 do ending[#ending + 1] = ARGV[i] end
  end
end

local repeated = sub(last, 1, 10) == seq
local verdicts = {}
-- The first write is one that frees, if only nothing: else a full Redis would refuse the script.
if repeated or #ending == 0 then call('HDEL', running, '') end
if repeated then
  verdicts[1] = string.match(last, ';(.*)$')
else
  all_held = #ending == 0 or call('HDEL', running, unpack(ending)) == #ending
  for _, lot in ipairs(lots) do
    if all_held and lot.kind == 's' then
      record_all(lot, verdicts)
    else
      for i = lot.first, lot.last, 2 do
        verdicts[#verdicts + 1] = seldom().finish(lot.kind, ARGV[i], ARGV[i + 1], lot.number)
      end
    end
  end
end
verdicts = table.concat(verdicts)
for i = at, #ARGV, 2 do caps[ARGV[i]] = tonumber(ARGV[i + 1]) end

local expiry = call('ZSCORE', base .. 'workers', worker)
if not expiry then return {'lost', digits(now_us), '', '', verdicts} end
if (tonumber(expiry) or 0) < now + 0.8 * lease then
  call('ZADD', base .. 'workers', digits(now + lease), worker)
end

local out = {'ok', digits(now_us), '', '', verdicts}
local to_cancel = call('EXISTS', base .. 'cancels:' .. worker) == 1 and 'x' or ''
if repeated then
  local held, claimed = call('HGETALL', running), {}
  for i = 1, #held, 2 do
    if sub(held[i], 33) == seq then claimed[#claimed + 1] = {held[i], held[i + 1]} end
  end
  -- Ids are ordered by time.
  table.sort(claimed, function(a, b) return a[1] < b[1] end)
  for _, pair in ipairs(claimed) do
    local lane, message = seldom().unpack_claimed(pair[2])
    local task = task_of(lane)
    local kind = call('HGET', base .. 'known:' .. digest, task) or 't'
    local sort = caps[task] and AHEAD[kind] or kind
    out[#out + 1] = sort .. (seldom().read(sub(pair[1], 1, 32)) or '')
    out[#out + 1] = message
  end
  out[3], out[4] = string.match(last, '^..........(%d*)(%a*);')
  out[3], out[4] = out[3] or '', (out[4] or '') .. to_cancel
  return out
end

local due, coming, arrived = first_due(), {}, {}
if due <= now then
  coming, arrived = seldom().arrive()
  due = first_due()
end

-- here: claims

for _, level in ipairs(levels()) do serve(level) end

for first = 1, #claims, 1000 do
  local upto = math.min(first + 999, #claims)
  call('HSET', running, unpack(claims, first, upto))
  call('MSET', unpack(records, first, upto))
end
if #arrived > 0 then seldom().queue_rest(arrived) end
-- More is due than was looked at. Others are rung for; if this worker has no slot, `more` says so.
if due <= now then
  for _, lot in ipairs(arrived) do
    local task = task_of(lot.lane)
    local kind = call('HGET', base .. 'known:' .. digest, task)
    if kind and room[kind] <= 0 then left[kind] = true end
    seldom().ring_for(task)
  end
end
-- Work is left that somebody else may have a slot for.
for kind in pairs(left) do
  ring(digest, kind)
  out[4] = out[4] .. kind
end

-- One worker with room watches for the next due time; the others need not wake for it.
-- If more is due, and there are slots for it, it comes again at once.
local again = due <= now and not next(left)
if again or (due > now and due < math.huge and room.t + room.c > 0) then
  local holder = call('GET', base .. 'timer')
  if not holder or holder == worker then
    call('SET', base .. 'timer', worker, 'PX', math.max(0, math.ceil(due - now)) + 100)
    out[3] = digits(due)
  end
end
call('HSET', base .. 'seqs', worker, seq .. out[3] .. out[4] .. ';' .. verdicts)
out[4] = out[4] .. to_cancel
return out
