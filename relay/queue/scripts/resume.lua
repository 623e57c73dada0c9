-- Resume paused environments; one that has something to deliver is looked at at once.
-- KEYS  paused, schedule, then the outbox of each environment
-- ARGV  environments
-- ->    for each: since when it was paused, in ms, 0 if it was not
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local result = {}
for i, environment in ipairs(ARGV) do
  local since = redis.call('HGET', KEYS[1], environment)
  if since and redis.call('HDEL', KEYS[1], environment) == 1 and redis.call('EXISTS', KEYS[i + 2]) == 1 then
    redis.call('ZADD', KEYS[2], 'LT', now, environment)
  end
  result[i] = tonumber(since or '0')
end
return result
