-- Tell what a drain saw of a destination, and learn what all have seen.
-- KEYS  destination
-- ARGV  successes since it told last, failures since then (after the last success, if there was one),
--       by how much the window is to grow, -1 to shrink, the largest window, milliseconds between two shrinkings
-- ->    the destination's health, each '' if not known: {until, reason, openings, failures in a row, successes, window,
--       circuit}
redis.call('HDEL', KEYS[1], '') -- frees nothing, but at maxmemory a script may write once it began with a delete
local successes, failures = tonumber(ARGV[1]), tonumber(ARGV[2])
if successes > 0 then
  redis.call('HINCRBY', KEYS[1], 'successes', successes)
  redis.call('HSET', KEYS[1], 'failures', failures)
elseif failures > 0 then
  redis.call('HINCRBY', KEYS[1], 'failures', failures)
end
local change = tonumber(ARGV[3])
if change ~= 0 then
  local clock = redis.call('TIME')
  local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
  local most = tonumber(ARGV[4])
  local window = math.min(most, tonumber(redis.call('HGET', KEYS[1], 'window') or most))
  local shrunk = tonumber(redis.call('HGET', KEYS[1], 'shrunk') or '0')
  if change > 0 then
    redis.call('HSET', KEYS[1], 'window', math.min(most, window + change))
  elseif now - shrunk >= tonumber(ARGV[5]) or shrunk > now then -- one wave of failures shrinks it once
    redis.call('HSET', KEYS[1], 'window', math.max(1, math.floor(window / 2)), 'shrunk', now)
  end
end
local health = redis.call('HMGET', KEYS[1], 'until', 'reason', 'openings', 'failures', 'successes', 'window',
                         'circuit')
for i = 1, 7 do
  health[i] = health[i] or ''
end
return health
