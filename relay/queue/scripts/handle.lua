-- Note which entry a drain has in hand alone, before it does anything with it.
-- KEYS  lease, run
-- ARGV  token, entry id
-- ->    how many drains died with it alone in hand; -1 when the lease is lost
local holder = redis.call('GET', KEYS[1])
local run = redis.call('HMGET', KEYS[2], 'entry', 'deaths', 'token')
if holder ~= ARGV[1] and (holder or run[3] ~= ARGV[1]) then
  return -1
end
if run[1] == ARGV[2] then
  return tonumber(run[2] or '0')
end
redis.call('HDEL', KEYS[2], 'deaths') -- first: at maxmemory a script may write once it began with a delete
redis.call('HSET', KEYS[2], 'entry', ARGV[2])
return 0
