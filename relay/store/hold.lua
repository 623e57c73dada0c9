-- Hold an endpoint's deliveries, for all workers. A hold is only ever extended.
-- KEYS  endpoint
-- ARGV  milliseconds from now, reason
-- ->    until when it is held now, in ms
redis.call('HDEL', KEYS[1], '') -- frees nothing, but at maxmemory a script may write once it began with a delete
local clock = redis.call('TIME')
local wanted = clock[1] * 1000 + math.floor(clock[2] / 1000) + tonumber(ARGV[1])
local standing = tonumber(redis.call('HGET', KEYS[1], 'until') or '0')
if wanted > standing then
  redis.call('HSET', KEYS[1], 'until', string.format('%d', wanted), 'reason', ARGV[2])
  standing = wanted
end
return standing
