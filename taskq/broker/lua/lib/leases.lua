-- Leases: to be a member of `workers` is to hold one. Needs core and clock.
-- Renew the lease of a child; false where it has none.
local function renew_lease(worker, lease)
  if not call('ZSCORE', base .. 'workers', worker) then return false end
  call('ZADD', base .. 'workers', digits(now + lease), worker)
  return true
end

-- Keep what is known of children whose leases go on; false where their tasks were forgotten.
local function keep_known(digest)
  call('ZADD', base .. 'groups', digits(now + DAY), digest)
  for _, key in ipairs({'groups', 'names', 'seqs'}) do call('PEXPIRE', base .. key, DAY) end
  return call('PEXPIRE', base .. 'known:' .. digest, DAY) == 1
end
