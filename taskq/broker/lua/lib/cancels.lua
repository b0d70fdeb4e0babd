-- What a worker is to cancel: `cancels:<worker>` maps the id of a message that it holds to
-- `<number of the claim(10)><'t' terminate, else '-'><proof(25)><reason>`. The proof is for
-- the worker: no script can tell whether it is good. Needs core and records.
local PROVEN = 26

local function is_order(order)
  return string.find(order, '^[t-]') and #order >= PROVEN
end

-- The order for this claim, if there is one.
local function order_for(worker, field)
  local order = call('HGET', base .. 'cancels:' .. worker, sub(field, 1, 32))
  return order and sub(order, 1, 10) == sub(field, 33) and order
end

-- Its worker does not want the message any more, and nobody else is to have it.
local function call_off(publish, worker, id, record, order)
  call('HDEL', base .. 'cancels:' .. worker, id)
  resolve(publish, id, 'c', record, sub(order, 10 + PROVEN + 1), DAY)
end

-- Field and order of all that the worker still holds; what ended meanwhile is dropped.
local function orders_of(worker)
  local key, out = base .. 'cancels:' .. worker, {}
  local all = call('HGETALL', key)
  for i = 1, #all, 2 do
    local field = all[i] .. sub(all[i + 1], 1, 10)
    if call('HEXISTS', base .. 'running:' .. worker, field) == 1 then
      out[#out + 1], out[#out + 2] = field, sub(all[i + 1], 11)
    elseif call('HEXISTS', base .. 'orphans:' .. worker, field) == 0 then
      call('HDEL', key, all[i])
    end
  end
  return out
end
