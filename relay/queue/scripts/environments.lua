-- Return the counters of environments. Changes nothing.
-- KEYS  for each environment its counts, outbox, due, run
-- ARGV  1 to read the first entry's time: that takes as long as all the rest, because the whole entry is read
-- ->    for each {entries, instances that wait for a retry, time of the first entry in ms or nil, delivered,
--       duplicate, stale, superseded, dead, delivery count of the entry in hand}
local result = {}
for key = 1, #KEYS, 4 do
  local entries, retrying, oldest, delivery_count = redis.call('XLEN', KEYS[key + 1]), 0, false, 0
  if entries > 0 then
    if ARGV[1] == '1' then
      local first = redis.call('XRANGE', KEYS[key + 1], '-', '+', 'COUNT', 1)[1][1]
      oldest = tonumber(string.match(first, '^%d+'))
    end
    if redis.call('EXISTS', KEYS[key + 2], KEYS[key + 3]) > 0 then
      retrying = redis.call('ZCARD', KEYS[key + 2])
      delivery_count = tonumber(redis.call('HGET', KEYS[key + 3], 'deaths') or 0)
    end
  end
  local known = {entries, retrying, oldest}
  for i, number in ipairs(redis.call('HMGET', KEYS[key], 'delivered', 'duplicate', 'stale', 'superseded', 'dead')) do
    known[3 + i] = tonumber(number or 0)
  end
  known[9] = delivery_count
  result[#result + 1] = known
end
return result
