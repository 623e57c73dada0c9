-- Which of these drains need a wakeup: those that nobody runs and that no wakeup is under way to.
-- KEYS  counts, then lease, wakeup of each drain
-- ARGV  milliseconds after which a wakeup counts as lost, why it is rung
-- ->    the positions (from 1) of the drains to ring
local ring = {}
local longest = math.max(2 * ARGV[1], 600000) -- that a lease or a wakeup may last: longer, and the clock was set back
for i = 2, #KEYS, 2 do
  for key = i, i + 1 do
    if redis.call('PTTL', KEYS[key]) > longest then
      redis.call('PEXPIRE', KEYS[key], ARGV[1])
    end
  end
  -- Deleting what is not there frees nothing, but at maxmemory a script may write once it began with a delete.
  if redis.call('EXISTS', KEYS[i]) == 0 and redis.call('DEL', KEYS[i]) == 0 and redis.call('SET', KEYS[i + 1], '1', 'NX', 'PX', ARGV[1]) then
    ring[#ring + 1] = i / 2
  end
end
if #ring > 0 then
  redis.call('HINCRBY', KEYS[1], 'wakeup:' .. ARGV[2], #ring)
end
return ring
