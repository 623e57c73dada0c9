-- Pause environments: their deliveries are held until resumed, events keep queueing. One that is paused stays so
-- since when it was.
-- KEYS  paused
-- ARGV  environments
-- ->    for each: 1 if it was not paused before, else 0; since when, in ms
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local result = {}
for _, environment in ipairs(ARGV) do
  local since = redis.call('HGET', KEYS[1], environment)
  result[#result + 1] = since and 0 or 1
  result[#result + 1] = tonumber(since) or now
  -- Deleting what is not there frees nothing, but at maxmemory a script may write once it began with a delete.
  if not since and redis.call('HDEL', KEYS[1], environment) == 0 then
    redis.call('HSET', KEYS[1], environment, now)
  end
end
return result
