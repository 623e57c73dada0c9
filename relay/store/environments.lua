-- What is known of some environments. Changes nothing.
-- KEYS  for each environment its counts, outbox, due, run
-- ->    for each {entries, first id or '', instances that wait for a retry, drains that died with an event in hand,
--       delivered, duplicate, stale, superseded, dead}
local result = {}
for key = 1, #KEYS, 4 do
  local known = {redis.call('XLEN', KEYS[key + 1]), '', 0, 0}
  if known[1] > 0 then
    known[2] = redis.call('XRANGE', KEYS[key + 1], '-', '+', 'COUNT', 1)[1][1]
    known[3] = redis.call('ZCARD', KEYS[key + 2])
    known[4] = tonumber(redis.call('HGET', KEYS[key + 3], 'deaths') or '0')
  end
  for i, number in ipairs(redis.call('HMGET', KEYS[key], 'delivered', 'duplicate', 'stale', 'superseded', 'dead')) do
    known[4 + i] = tonumber(number or '0')
  end
  result[#result + 1] = known
end
return result
