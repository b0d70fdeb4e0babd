-- reschedule: give a message that waits for its time, the first or another attempt's, a new one.
-- KEYS  base
-- ARGV  id due    due: ms since the epoch, or '+' and ms from now
-- Returns 'moved' | 'queued' | 'running' | 'over' | 'unknown'    all but the first: as it was
-- use: core clock due records lanes scheduled
local id, due = ARGV[1], due_at(ARGV[2])
if not due then return redis.error_reply('ERR not a due time') end
-- The first write removes, if only nothing: on a full Redis, too, work may be brought forward.
call('HDEL', base .. 'seqs', '')
local record = read(id)
if not record then return 'unknown' end
if is_terminal(record) then return 'over' end
if not is_waiting(record) then
  return sub(record, 1, 1) == 'Q' and 'queued' or 'running'
end
local first = first_due()
call('ZADD', base .. 'scheduled', digits(due), id)
if due < first then watch_for(cleared((parts_of(record)))) end
return 'moved'
