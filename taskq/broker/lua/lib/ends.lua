-- Ends of attempts: `finish` records one, and returns the verdict on it.
-- A part of exchange, with its locals: all but the plain success, which is in exchange itself.

-- The claim is gone. Either this is a repeat, or the message was taken back.
local function finish_late(kind, id, claim, payload, ttl)
  local record = read(id)
  if not record or #record < HEAD or claim_of(record) ~= claim then return 'l' end
  local state = sub(record, 1, 1)
  if state == 'R' then return 'l' end
  if is_terminal(record) or kind == 'y' or kind == 'b' or kind == 'r' then return 'k' end
  -- Taken back and not handed out since: the work is done, so let it count.
  if is_waiting(record) then
    local lane, _, message = parts_of(record)
    unschedule(id, record)
    if kind == 'f' then bury(id, lane, message, payload, letters, letter_age) end
    save_terminal(id, payload, ttl)
  else
    -- Its bytes are still in a list: the claim that meets them sets the TTL, and buries them.
    save_terminal(id, payload)
  end
  announce(publish, id, payload)
  return 'k'
end

-- A retry that is due before all others: whoever watches, watches for a later time.
local function watch_anew(id, lane)
  if call('ZRANGE', base .. 'scheduled', 0, 0)[1] == id then
    call('DEL', base .. 'timer')
    if room.t + room.c == 0 then ring_for(task_of(lane)) end
  end
end

local function held(id, claim)
  local record = read(id)
  return record and sub(record, 1, 1) == 'R' and claim_of(record) == claim
end

-- The last failure: unlike a success it needs the message, for its dead letter.
local function fail(id, field, payload, ttl)
  local claim, key = worker .. sub(field, 33), running
  local value = call('HGET', key, field)
  if not value then
    if not held(id, claim) then return finish_late('f', id, claim, payload, ttl) end
    -- It may be among what is being taken back at this moment.
    key = base .. 'orphans:' .. worker
    value = call('HGET', key, field)
  end
  call('HDEL', key, field)
  if value then
    local lane, message = unpack_claimed(value)
    bury(id, lane, message, payload, letters, letter_age)
  end
  save_terminal(id, payload, ttl)
  announce(publish, id, payload)
  return 'k'
end

-- The head of the record of a message one attempt at which has ended, and is to be made anew.
local function attempted(record)
  local counters = counters_of(record)
  -- It ended as tasks do: it is no suspect any more.
  return 'Y' .. label_of(record) .. counted(sub(counters, 1, 6)) .. sub(counters, 7, 9) .. '000'
    .. sub(counters, 13)
end

local function finish(kind, field, payload, number)
  local id = sub(field, 1, 32)
  if kind == 'f' then return fail(id, field, payload, number) end
  if kind == 's' then
    local claim = worker .. sub(field, 33)
    if not all_held then
      if not held(id, claim) then return finish_late(kind, id, claim, payload, number) end
      -- It may be among what is being taken back at this moment.
      call('HDEL', base .. 'orphans:' .. worker, field)
    end
    save_terminal(id, payload, number)
    announce(publish, id, payload)
    return 'k'
  end
  local value = call('HGET', running, field)
  if not value then return finish_late(kind, id, worker .. sub(field, 33), payload, number) end
  call('HDEL', running, field)
  local lane, message = unpack_claimed(value)
  local record = read(id) or ('R' .. NO_LABEL .. UNCLAIMED)
  local order = (kind == 'b' or kind == 'y') and order_for(worker, field)
  if order then
    if kind == 'y' then record = attempted(record) end
    call_off(publish, worker, id, record, order)
  elseif lane == '' and (kind == 'b' or kind == 'y') then
    set_aside(publish, id, lane, message, record, 'what was claimed is no message', letters, letter_age)
  elseif kind == 'b' then
    call('SET', base .. 'm:' .. id, queued(label_of(record), counters_of(record), history_of(record)))
    put_back(lane, message)
  elseif kind == 'y' then
    wait_until(id, now + tonumber(number), attempted(record), cleared(lane), payload, message)
    watch_anew(id, cleared(lane))
  else
    if kind == 'r' then
      bury(id, lane, message, payload, letters, letter_age)
      count('refused')
    else
      call('HDEL', base .. 'cancels:' .. worker, id)
    end
    save_terminal(id, payload, number)
    announce(publish, id, payload)
  end
  return 'k'
end
