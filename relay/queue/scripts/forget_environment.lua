-- Forget an environment of which nothing is left and where nothing happened for long. Decided and done in one step, so
-- that one that gets an event this moment stays. The shard's totals keep what was counted there.
-- KEYS  1 environments, 2 schedule, 3 paused, 4 the outbox's counts,
--       5 outbox, 6 accepted state, 7 deferred, 8 lease, 9 wakeup: with one of these it stays,
--       10 delivered state, 11 due, 12 attempts, 13 cursor, 14 run, 15 gone: these go with it
-- ARGV  environment, milliseconds since the epoch: what happened there since then keeps it
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
  -- Counted by an older version, which noted no time: it begins now, or later if Redis has no memory.
  local clock = redis.call('TIME')
  redis.pcall('HSET', KEYS[4], 'seen', clock[1] * 1000 + math.floor(clock[2] / 1000))
  return 0
end
-- With an outbox that was deleted behind our back the total is yet to be put right: release_outbox.lua does.
if tonumber(known[1]) >= tonumber(ARGV[2]) or tonumber(known[2] or '0') ~= 0 then
  return 0
end
redis.call('ZREM', KEYS[1], environment)
redis.call('DEL', KEYS[4], unpack(KEYS, 10, 15))
return 1
