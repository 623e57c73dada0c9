-- Return what waits for a run. Changes nothing.
-- While the destination is throttled or unavailable no outbox is due. While its circuit is open, a few random ones are,
-- so that a probe with an event of one environment is followed by a probe with another's.
-- ->    {now in ms, entries in the inbox, when the next outbox is due in ms or '', environments that are due...}
local MAX_THROTTLE_MS = 600000 -- a longer throttle was set by a clock that was set back since
local now = now_ms()
local inbox_entries = call('XLEN', inbox_key) -- not the first id: Redis returns it only with its entry, of any size
local health = call('HMGET', health_key, 'until', 'openings', 'probe_until')
local closed_until = math.max(tonumber(health[1] or '0'), tonumber(health[3] or '0'))
if closed_until > now and closed_until <= now + MAX_THROTTLE_MS then
  return {now, inbox_entries, string.format('%d', closed_until)}
end

local later = call('ZRANGEBYSCORE', schedule_key, '(' .. now, '(+inf', 'WITHSCORES', 'LIMIT', 0, 1)
local result = {now, inbox_entries, later[2] or ''}
local function append(environments)
  for _, environment in ipairs(environments) do
    result[#result + 1] = environment
  end
end
local first, number = tonumber(skip), tonumber(wanted)
if tonumber(health[2] or '0') > 0 then
  local due = call('ZCOUNT', schedule_key, '-inf', now)
  if due == 0 or first > 0 then
    return result
  end
  first, number = call('TIME')[2] % due, tonumber(probes) -- microseconds: as good as random
end
append(call('ZRANGEBYSCORE', schedule_key, '-inf', now, 'LIMIT', first, number))

-- An outbox that is due later than any retry can be was scheduled before the clock was set back.
local room = number - #result + 3
if first == 0 and room > 0 then
  append(call('ZRANGEBYSCORE', schedule_key, now + longest_pause_ms, '(+inf', 'LIMIT', 0, room))
end
return result
