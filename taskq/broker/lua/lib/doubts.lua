-- Messages met by a claim of which there is more to know than that they are queued.
-- A part of exchange, with its locals.

-- Whether Lua can read what it must: magic, id and expiry.
local function is_ours(id, message)
  return #message > 73 and sub(message, 1, 2) == 'TQ' and string.find(id, '^%x+$')
    and (sub(message, 45, 57) == NEVER or string.find(sub(message, 45, 57), '^%d+$'))
end

local function claimed_record(record)
  local counters = counters_of(record)
  local delivery = counted(sub(counters, 13, 18))
  -- At most what Lua can count one by one, which is 16 digits still.
  local fence = math.min(math.max(tonumber(sub(counters, 19, 34)) + 1, now_us), 9007199254740991)
  local history = #record >= HEAD and history_of(record) or ''
  return 'R' .. label_of(record) .. sub(counters, 1, 12) .. delivery .. digits(fence) .. claim .. history
end

-- Whether a popped message is to be run; if not, see to it. `known` is its record.
local function is_to_run(lane, id, message, known)
  if not is_ours(id, message) then
    local waited = known and sub(known, 1, 1) == 'Q' and known
    set_aside(publish, id, lane, message, waited, 'not a taskq message', letters, letter_age)
    return false
  end
  if taken[id] then return false end
  if known and sub(known, 1, 1) ~= 'Q' then
    -- Resolved while it was queued; or a copy of a message that is somewhere else.
    if is_terminal(known) then met(id, lane, message, known, letters, letter_age) end
    return false
  end
  local expires = sub(message, 45, 57)
  if expires ~= NEVER and tonumber(expires) <= now then
    resolve(publish, id, 'e', known or 'Q', '', DAY)
    count('expired')
    return false
  end
  if not known then count('unrecorded') end
  return true
end
