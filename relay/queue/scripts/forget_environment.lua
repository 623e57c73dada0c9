-- Forget an environment without instances, events or recent activity. Atomic, so that an environment that gets an event
-- meanwhile stays. The shard's totals keep its counts.
-- KEYS  1 environments, 2 schedule, 3 paused, 4 the outbox's counts,
--       5 outbox, 6 accepted state, 7 deferred, 8 lease, 9 wakeup: any of these keeps it,
--       10 delivered state, 11 due, 12 attempts, 13 cursor, 14 run, 15 gone: these are deleted with it
-- ARGV  environment, milliseconds since the epoch: activity since then keeps it
-- ->    1 if it is forgotten, else 0
local environment = ARGV[1]
if not redis.call('ZSCORE', KEYS[1], environment)
    or redis.call('EXISTS', unpack(KEYS, 5, 9)) > 0
    or redis.call('ZSCORE', KEYS[2], environment)
    or redis.call('HEXISTS', KEYS[3], environment) == 1 then
  return 0
end
local known = redis.call('HMGET', KEYS[4], 'seen', 'outbox')
if not known[1] then
  -- An older version noted no time: it starts now, or later if Redis has no memory.
  local clock = redis.call('TIME')
  redis.pcall('HSET', KEYS[4], 'seen', clock[1] * 1000 + math.floor(clock[2] / 1000))
  return 0
end
-- If the outbox was deleted manually, release_outbox.lua has yet to correct the total.
if tonumber(known[1]) >= tonumber(ARGV[2]) or tonumber(known[2] or '0') ~= 0 then
  return 0
end
redis.call('ZREM', KEYS[1], environment)
redis.call('DEL', KEYS[4], unpack(KEYS, 10, 15))
return 1
