-- Take a message back by a signed order: at once where it waits, by its worker where it runs.
-- Needs core, clock, records, cancels, lanes and scheduled.
local function recall(publish, id, order)
  local reason = sub(order, PROVEN + 1)
  local record = read(id)
  if not record then
    if call('EXISTS', base .. 'm:' .. id) == 0 then return 'unknown' end
    -- No script wrote it: there is nothing to run, or what is there is not to.
    resolve(publish, id, 'c', 'Q', reason, DAY)
    return 'cancelled'
  end
  if is_terminal(record) then
    -- The reply to the first call may have been lost.
    return sub(record, 1, 1) == 'c' and history_of(record) == reason and 'cancelled' or 'over'
  end
  if is_waiting(record) then
    unschedule(id, record)
    resolve(publish, id, 'c', record, reason, DAY)
    return 'cancelled'
  end
  if sub(record, 1, 1) == 'Q' then
    -- Its bytes are still in a list: the claim that meets them sets the TTL.
    resolve(publish, id, 'c', record, reason)
    return 'cancelled'
  end

  local worker, seq = sub(record, 57, 88), sub(record, 89, 98)
  local field = id .. seq
  if call('HEXISTS', base .. 'running:' .. worker, field) == 0
    and call('HEXISTS', base .. 'orphans:' .. worker, field) == 0 then
    -- Redis lost its bytes: nobody runs it, nor ever will.
    resolve(publish, id, 'c', record, reason, DAY)
    return 'cancelled'
  end
  local key, wake = base .. 'cancels:' .. worker, base .. 'wake:' .. worker
  local earlier = call('HGET', key, id)
  -- A second call may ask for more than the first, not for less. What it asks is proven as a
  -- whole, so it takes the first one's place as a whole.
  if not earlier or sub(earlier, 1, 10) ~= seq or sub(order, 1, 1) == 't' then
    call('HSET', key, id, seq .. order)
  end
  if call('LLEN', wake) == 0 then call('LPUSH', wake, '1') end
  call('PEXPIRE', wake, 60000)
  return 'told'
end
