-- Redis's own clock: the only one that decides anything. Needs core.
local time = call('TIME')
local now_us = time[1] * 1000000 + time[2]
local now = math.floor(now_us / 1000)
