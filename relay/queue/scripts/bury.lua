-- Make a dead letter of an inbox entry that is too large to be read: with the fields that are given, and its size.
-- Fenced by the lease, and harmless when applied twice.
-- KEYS  1 lease, 2 inbox, 3 dead, 4 counts, 5 internal, 6 dataset, 7 receipt, if the entry asks for one
-- ARGV  token, lease in ms, entry id, reason, detail, size in bytes, ms to keep the receipt, then fields and values
-- ->    1; 0 if the entry was gone before; -1 when the lease is lost
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return -1
end
local deleted = redis.call('XDEL', KEYS[2], ARGV[3]) -- first: at maxmemory a script may write once it frees memory
redis.call('HDEL', KEYS[5], ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
if deleted == 0 then
  return 0
end
local fields = {unpack(ARGV, 8)}
for _, extra in ipairs({'reason', ARGV[4], 'detail', ARGV[5], 'entry', ARGV[3], 'size', ARGV[6]}) do
  fields[#fields + 1] = extra
end
redis.call('XADD', KEYS[3], '*', unpack(fields))
redis.call('HINCRBY', KEYS[4], 'dead', 1)
redis.call('HINCRBY', KEYS[4], 'dead:' .. ARGV[4], 1)
if redis.call('HEXISTS', KEYS[4], 'taken') == 0 then
  redis.call('HSETNX', KEYS[6], 'internal_after', '0-0') -- as accept.lua does it in a new data set
end
redis.call('HINCRBY', KEYS[4], 'taken', 1)
if KEYS[7] then
  local before = string.match(redis.call('GET', KEYS[7]) or 'queued', '^%l*')
  if before == 'queued' or before == 'dead' then
    local clock = redis.call('TIME')
    local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
    redis.call('SET', KEYS[7], 'dead\n' .. now .. '\n' .. ARGV[4] .. '\n' .. ARGV[5], 'PX', ARGV[7])
  end
end
return 1
