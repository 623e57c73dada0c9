-- What the poller sees: whether anything waits that a drain should be called to. Changes nothing.
-- While the destination is held no outbox is due; while its circuit is open, a few are, at random, so that a probe
-- with one environment's event is followed by one with another's.
-- KEYS  inbox, schedule, destination
-- ARGV  environments wanted, how many of the first to pass over, environments to probe with, the longest pause
--       of a retry in ms
-- ->    {now in ms, entries in the inbox, when the next outbox is due in ms or '', environments that are due...}
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local result = {now, redis.call('XLEN', KEYS[1]), ''} -- no id: Redis returns none without its entry, of any size
local health = redis.call('HMGET', KEYS[3], 'until', 'openings', 'probe_until')
local MAX_HOLD_MS = 600000         -- a hold that is farther ahead was set by a clock that was set back since
local MAX_PAUSE_MS = tonumber(ARGV[4]) -- the same of an outbox
local not_before = math.max(tonumber(health[1] or '0'), tonumber(health[3] or '0'))
if not_before > now and not_before <= now + MAX_HOLD_MS then
  result[3] = string.format('%d', not_before)
  return result
end
local later = redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. now, '(+inf', 'WITHSCORES', 'LIMIT', 0, 1)
result[3] = later[2] or ''
local wanted, skip = ARGV[1], ARGV[2]
if tonumber(health[2] or '0') > 0 then
  local due = redis.call('ZCOUNT', KEYS[2], '-inf', now)
  if due == 0 or tonumber(skip) > 0 then
    return result
  end
  wanted, skip = ARGV[3], tonumber(clock[2]) % due
end
for _, environment in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', skip, wanted)) do
  result[#result + 1] = environment
end
if tonumber(skip) == 0 then
  local room = wanted - #result + 3
  local ahead = room > 0 and redis.call('ZRANGEBYSCORE', KEYS[2], now + MAX_PAUSE_MS, '(+inf', 'LIMIT', 0, room) or {}
  for _, environment in ipairs(ahead) do
    result[#result + 1] = environment
  end
end
return result
