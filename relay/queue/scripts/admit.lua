-- May a drain send, and how many POSTs? None while the destination is held. While its circuit is open, one for the one
-- drain that probes, until its answer is known or it has had its time. Else what the rate limit leaves: a token bucket
-- kept as the one time at which it would be full again (GCRA).
-- KEYS  destination
-- ARGV  token, POSTs wanted, POSTs a second (0 for no limit), burst, milliseconds that a probe may take
-- ->    {POSTs granted, milliseconds until it is worth asking again, 1 if it is the probe}
redis.call('HDEL', KEYS[1], '') -- frees nothing, but at maxmemory a script may write once it began with a delete
local clock = redis.call('TIME')
local now = clock[1] * 1000 + clock[2] / 1000
local health = redis.call('HMGET', KEYS[1], 'until', 'openings', 'prober', 'probe_until', 'full_at')
local held_until = tonumber(health[1] or '0')
local MAX_HOLD_MS = 600000 -- what is farther ahead was set by a clock that was set back since
if held_until > now and held_until <= now + MAX_HOLD_MS then
  return {0, math.ceil(held_until - now), 0}
end
local granted, probing = tonumber(ARGV[2]), 0
if tonumber(health[2] or '0') > 0 then
  local probe_until = tonumber(health[4] or '0')
  if health[3] and health[3] ~= ARGV[1] and probe_until > now and probe_until <= now + MAX_HOLD_MS then
    return {0, math.ceil(probe_until - now), 0}
  end
  granted, probing = 1, 1
end
local rate = tonumber(ARGV[3])
if rate > 0 then
  local spacing, burst = 1000 / rate, tonumber(ARGV[4])
  local full_at = math.max(now, tonumber(health[5] or '0'))
  if full_at > now + burst * spacing then -- never further ahead, unless the clock or the limit was set back
    full_at = now
  end
  local free = math.floor((now - full_at) / spacing + burst)
  if free < 1 then
    return {0, math.ceil(full_at - now - (burst - 1) * spacing), 0}
  end
  granted = math.min(granted, free)
  redis.call('HSET', KEYS[1], 'full_at', string.format('%.3f', full_at + granted * spacing))
end
if probing == 1 then
  redis.call('HSET', KEYS[1], 'prober', ARGV[1], 'probe_until', string.format('%d', now + ARGV[5]))
end
return {granted, 0, probing}
