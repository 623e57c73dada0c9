-- Open the circuit of a destination, or open it again after a probe failed: hold its deliveries for a pause that doubles
-- each time in a row, and begin slowly after it. A hold is only ever extended.
-- Only who probes opens an open circuit again: what was still in flight when it opened says nothing new.
-- While a throttle lasts, the pause is no shorter than the time between its probes.
-- KEYS  destination
-- ARGV  token, first pause in ms, longest pause in ms, reason, milliseconds between two probes of a throttle
-- ->    {until when it is held now, in ms, reason, openings in a row}
redis.call('HDEL', KEYS[1], '') -- frees nothing, but at maxmemory a script may write once it began with a delete
local health = redis.call('HMGET', KEYS[1], 'until', 'reason', 'openings', 'prober', 'throttled_until')
local standing, openings = tonumber(health[1] or '0'), tonumber(health[3] or '0')
if openings > 0 and health[4] ~= ARGV[1] then
  return {standing, health[2] or '', openings}
end
openings = openings + 1
local pause = math.min(tonumber(ARGV[3]), tonumber(ARGV[2]) * 2 ^ math.min(openings - 1, 30))
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local throttled = tonumber(health[5] or '0') - now
pause = math.max(pause, math.min(throttled, tonumber(ARGV[5])))
local wanted = now + math.floor(pause)
redis.call('HDEL', KEYS[1], 'prober', 'probe_until')
redis.call('HSET', KEYS[1], 'openings', openings, 'window', 1, 'circuit', ARGV[4])
if wanted > standing then
  redis.call('HSET', KEYS[1], 'until', string.format('%d', wanted), 'reason', ARGV[4])
  redis.call('HINCRBY', KEYS[1], 'held_ms:' .. ARGV[4], wanted - math.max(standing, now))
  return {wanted, ARGV[4], openings}
end
return {standing, health[2] or '', openings}
