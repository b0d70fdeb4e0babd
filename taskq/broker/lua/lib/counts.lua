-- What happened to a queue, in numbers. Needs core.
local function count(what)
  call('HINCRBY', base .. 'counts', what, 1)
  call('PEXPIRE', base .. 'counts', 90 * DAY)
end
