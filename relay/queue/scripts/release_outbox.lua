-- Let go of an outbox, note when to look at it again, and tell whether that is now: asked and done in one
-- step, so that an entry is seen either here or by the intake that finds no lease.
-- A paused environment is looked at again when it is resumed.
-- KEYS  1 lease, 2 run, 3 outbox, 4 deferred, 5 due, 6 attempts, 7 cursor, 8 schedule, 9 wakeup,
--       10 the outbox's counts, 11 counts, 12 paused
-- ARGV  token, milliseconds after which a wakeup counts as lost, environment, cursor, 1 if the destination is held,
--       then the instances whose retry was taken and not sent: they are due again
-- ->    -1 lease lost before; 0 nothing to do now; 1 more to do, for which the caller must ring
local holder = redis.call('GET', KEYS[1])
if holder ~= ARGV[1] and (holder or redis.call('HGET', KEYS[2], 'token') ~= ARGV[1]) then
  return -1
end
redis.call('DEL', KEYS[1], KEYS[2])
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local waiting = redis.call('XLEN', KEYS[3])
-- What is counted as waiting and is not there was deleted behind our back: say so, and count it no longer.
local lost = tonumber(redis.call('HGET', KEYS[10], 'outbox') or '0') - waiting
if lost ~= 0 then
  for key = 10, 11 do
    redis.call('HINCRBY', KEYS[key], 'outbox', -lost)
    redis.call('HINCRBY', KEYS[key], 'lost', lost)
  end
end
if waiting == 0 then
  redis.call('DEL', KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7])
  if redis.call('ZREM', KEYS[8], ARGV[3]) == 1 then -- something was done since it was empty before
    redis.call('HSET', KEYS[10], 'seen', now)
  end
  return 0
end

for i = 6, #ARGV do
  redis.call('ZADD', KEYS[5], 'XX', now, ARGV[i])
end
local look = now
if #redis.call('XRANGE', KEYS[3], ARGV[4], '+', 'COUNT', 1) > 0 then
  redis.call('SET', KEYS[7], ARGV[4])
elseif waiting > redis.call('ZCARD', KEYS[4]) then
  redis.call('DEL', KEYS[7]) -- entries before the cursor that nobody has: begin at the beginning
else
  redis.call('SET', KEYS[7], ARGV[4])
  local first = redis.call('ZRANGE', KEYS[5], 0, 0, 'WITHSCORES')
  look = tonumber(first[2] or now)
end
local paused = redis.call('HEXISTS', KEYS[12], ARGV[3]) == 1
redis.call('ZADD', KEYS[8], paused and '+inf' or look, ARGV[3])
if paused or ARGV[5] == '1' or look > now then
  return 0
end
redis.call('HINCRBY', KEYS[11], 'wakeup:work', 1)
redis.call('SET', KEYS[9], '1', 'PX', ARGV[2])
return 1
