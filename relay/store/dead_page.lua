-- A page of dead letters, each with its fields as they lie there, in order and even if a name comes twice.
-- Changes nothing.
-- KEYS  dead
-- ARGV  XRANGE or XREVRANGE, where to begin, where to end, entries at most
-- ->    entries: {id, {field, value, ...}}...
return redis.call(ARGV[1], KEYS[1], ARGV[2], ARGV[3], 'COUNT', ARGV[4])
