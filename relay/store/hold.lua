-- Hold an endpoint's deliveries, for all workers. A hold is only ever extended.
-- How long it is held is counted by reason: a hold that stands is always served to its end.
-- KEYS  endpoint
-- ARGV  milliseconds from now, reason
-- ->    until when it is held now, in ms
redis.call('HDEL', KEYS[1], '') -- frees nothing, but at maxmemory a script may write once it began with a delete
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local wanted = now + tonumber(ARGV[1])
local standing = tonumber(redis.call('HGET', KEYS[1], 'until') or '0')
redis.call('HSET', KEYS[1], 'asked_ms', ARGV[1])
if wanted > standing then
  redis.call('HSET', KEYS[1], 'until', string.format('%d', wanted), 'reason', ARGV[2])
  redis.call('HINCRBY', KEYS[1], 'held_ms:' .. ARGV[2], wanted - math.max(standing, now))
  standing = wanted
end
return standing
