-- A worker's sign of life, and whether the data set is still the one that it knew: FLUSHALL or a failover to an
-- empty or another Redis loses what was accepted, and nothing else would tell.
-- KEYS  the worker's heartbeat, dataset, counts, workers
-- ARGV  heartbeat, milliseconds to keep it, the data set's id as known to this worker or '', an id for a new one,
--       the worker's name, then for each use of a long time (`expire`, `forget`): its name, milliseconds between two
--       signs of life, of any workers, that make the time between them no measure of anything
-- ->    the data set's id
local current = redis.call('HGET', KEYS[2], 'id')
redis.call('DEL', KEYS[1])  -- first, so that at maxmemory the rest may be written
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[4], '-inf', now - ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[4], now + ARGV[2], '+inf') -- from before the clock was set back
redis.call('ZADD', KEYS[4], now, ARGV[5])
-- The clock was stepped, or no worker ran: what is reckoned by long times begins anew, so that it is late, never early.
local before = tonumber(redis.call('HGET', KEYS[2], 'beat_at') or now)
for i = 6, #ARGV, 2 do
  if math.abs(now - before) > tonumber(ARGV[i + 1]) then
    redis.call('HSET', KEYS[2], 'steady:' .. ARGV[i], now)
  end
end
redis.call('HSET', KEYS[2], 'beat_at', now)
if not current then
  current = ARGV[4]
  redis.call('HSET', KEYS[2], 'id', current)
end
if ARGV[3] ~= '' and ARGV[3] ~= current and redis.call('HSETNX', KEYS[2], 'instead_of', ARGV[3]) == 1 then
  redis.call('HINCRBY', KEYS[3], 'resets', 1)  -- once, however many workers notice
end
return current
