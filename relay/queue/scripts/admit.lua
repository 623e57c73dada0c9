-- Admit requests: none before the destination's `until`; one while its circuit is open, of the one run that probes, until
-- that is answered or has had its time; else as many as the rate limit leaves. That is a token bucket, kept as the one
-- time at which it will be full again (GCRA).
-- A time more than longest_ms ahead was set by a clock that was set back since.
-- ->  {requests granted, milliseconds until it is worth asking again, 1 if it is the probe}
call('HDEL', health_key, '') -- frees nothing, but at maxmemory a script may write once it began with a delete
local clock = call('TIME')
local now = clock[1] * 1000 + clock[2] / 1000
local health = call('HMGET', health_key, 'until', 'openings', 'prober', 'probe_until', 'full_at')
local wait_until = tonumber(health[1] or '0')
if wait_until > now and wait_until <= now + longest_ms then
  return {0, math.ceil(wait_until - now), 0}
end
local granted, probes = tonumber(wanted), 0
if tonumber(health[2] or '0') > 0 then
  local probe_until = tonumber(health[4] or '0')
  if health[3] and health[3] ~= token and probe_until > now and probe_until <= now + longest_ms then
    return {0, math.ceil(probe_until - now), 0}
  end
  granted, probes = 1, 1
end
local rate = tonumber(rate_limit)
if rate > 0 then
  local spacing = 1000 / rate
  local full_at = math.max(now, tonumber(health[5] or '0'))
  if full_at > now + burst * spacing then -- the clock was set back, or the limit was lower
    full_at = now
  end
  local free = math.floor((now - full_at) / spacing + burst)
  if free < 1 then
    return {0, math.ceil(full_at - now - (burst - 1) * spacing), 0}
  end
  granted = math.min(granted, free)
  call('HSET', health_key, 'full_at', string.format('%.3f', full_at + granted * spacing))
end
if probes == 1 then
  call('HSET', health_key, 'prober', token, 'probe_until', string.format('%d', now + probe_ms))
end
return {granted, 0, probes}
