-- Let go of the inbox, and tell whether something came meanwhile: asked and done in one step, so that an
-- entry is seen either here or by the poller that finds no lease.
-- KEYS  lease, run, inbox, wakeup, counts
-- ARGV  token, milliseconds after which a wakeup counts as lost
-- ->    entries that wait, for which the caller must ring; -1 when the lease was lost before
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return -1
end
redis.call('DEL', KEYS[1], KEYS[2])
local waiting = redis.call('XLEN', KEYS[3])
if waiting > 0 then
  redis.call('SET', KEYS[4], '1', 'PX', ARGV[2])
  redis.call('HINCRBY', KEYS[5], 'wakeup:work', 1)
end
return waiting
