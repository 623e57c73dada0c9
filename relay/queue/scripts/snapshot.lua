-- Return a snapshot of the shard, atomically, so that its numbers agree with each other. Changes nothing.
-- A script, because at maxmemory Redis refuses a transaction even if it only reads.
-- KEYS  counts, latency, inbox, dead, environments, destination, paused, workers, then outboxes
-- ARGV  number of environments with the most deliveries
-- ->    {now in ms, counts, latency, last id of the inbox or '' (also if
--       reading it would read an entry that is too large), environments and their deliveries, destination,
--       paused environments, workers and their heartbeats, {entries, first id or ''} of the inbox, of the dead
--       letters, and of each outbox}
-- No command returns an entry's id without its contents, and a producer's entry may have 500 MB. MEMORY USAGE with one
-- sample multiplies the size of the first listpack by the number of all but the last, and adds the last.
local MOST_BYTES = 67108864
local NODE_ENTRIES = 100 -- of one listpack at most, Redis's default
local function used(stream)
  local bytes = redis.pcall('MEMORY', 'USAGE', stream, 'SAMPLES', 1)
  return type(bytes) == 'number' and bytes or 0
end
local function is_small_at_first(stream)
  return used(stream) / math.max(1, redis.call('XLEN', stream) / NODE_ENTRIES - 2) <= MOST_BYTES
end
local function is_small(stream) -- an estimate: it misses one large entry among very many small ones
  return used(stream) <= math.max(MOST_BYTES, redis.call('XLEN', stream) * MOST_BYTES / 1000)
end
local function waiting(stream)
  if not is_small_at_first(stream) then
    return {redis.call('XLEN', stream), ''}
  end
  local first = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
  return {redis.call('XLEN', stream), first and first[1] or ''}
end
local clock = redis.call('TIME')
local last = ''
if redis.call('EXISTS', KEYS[3]) == 1 and is_small(KEYS[3]) then
  local inbox = redis.call('XINFO', 'STREAM', KEYS[3])
  for i = 1, #inbox, 2 do
    last = inbox[i] == 'last-generated-id' and inbox[i + 1] or last
  end
end
local result = {
  clock[1] * 1000 + math.floor(clock[2] / 1000), redis.call('HGETALL', KEYS[1]), redis.call('HGETALL', KEYS[2]), last,
  redis.call('ZREVRANGE', KEYS[5], 0, ARGV[1] - 1, 'WITHSCORES'), redis.call('HGETALL', KEYS[6]),
  redis.call('HLEN', KEYS[7]), redis.call('ZRANGE', KEYS[8], 0, -1, 'WITHSCORES'), waiting(KEYS[3]),
  waiting(KEYS[4]),
}
for key = 9, #KEYS do
  result[#result + 1] = waiting(KEYS[key])
end
return result
