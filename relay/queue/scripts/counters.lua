-- Return the counters atomically. A script, because at maxmemory Redis refuses a transaction even if it only reads.
-- KEYS  counts, latency, inbox, dead
-- ->    {counts, latency, entries in the inbox, dead letters}
return {redis.call('HGETALL', KEYS[1]), redis.call('HGETALL', KEYS[2]), redis.call('XLEN', KEYS[3]),
        redis.call('XLEN', KEYS[4])}
