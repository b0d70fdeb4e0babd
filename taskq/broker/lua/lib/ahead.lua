-- The clock of a test, so far ahead of Redis's own; no worker asks for this. Needs core and clock.
now_us = now_us + (tonumber(call('GET', base .. 'ahead')) or 0)
now = math.floor(now_us / 1000)
