-- The counters in one snapshot. A script, because Redis refuses a transaction at maxmemory even if it only reads.
-- KEYS  counts, latency, inbox, dead
-- ->    {counts, latency, entries in the inbox, dead letters that lie there}
return {redis.call('HGETALL', KEYS[1]), redis.call('HGETALL', KEYS[2]), redis.call('XLEN', KEYS[3]),
        redis.call('XLEN', KEYS[4])}
