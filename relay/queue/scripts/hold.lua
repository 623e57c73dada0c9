-- Hold a destination's deliveries, for all workers, as it asked for. A hold is only ever extended.
-- One that is asked for longer than the time between two probes is a throttle: the circuit opens, so that a single event
-- probes the destination after each such time, and its success ends the throttle (close_circuit).
-- How long it is held is counted by reason, each hold to its end; lift.lua takes back what it ends early.
-- KEYS  destination
-- ARGV  milliseconds from now, reason, milliseconds between two probes
-- ->    {until when it is held now in ms, openings of its circuit in a row, why that is open or ''}
redis.call('HDEL', KEYS[1], '') -- frees nothing, but at maxmemory a script may write once it began with a delete
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local asked, between = tonumber(ARGV[1]), tonumber(ARGV[3])
local health = redis.call('HMGET', KEYS[1], 'until', 'throttled_until', 'openings', 'circuit')
local standing, openings, circuit = tonumber(health[1] or '0'), tonumber(health[3] or '0'), health[4] or ''
redis.call('HSET', KEYS[1], 'asked_ms', ARGV[1])
if asked > between then
  local throttled_until = math.max(now + asked, tonumber(health[2] or '0'))
  redis.call('HSET', KEYS[1], 'throttled_until', string.format('%d', throttled_until), 'window', 1)
  redis.call('HDEL', KEYS[1], 'prober', 'probe_until')
  openings = math.max(1, openings)
  if circuit == '' or circuit == 'unavailable' then -- a bad token or URL has to be mended first
    circuit = ARGV[2]
  end
  redis.call('HSET', KEYS[1], 'openings', openings, 'circuit', circuit)
end
local wanted = now + math.min(asked, between)
if wanted > standing then
  redis.call('HSET', KEYS[1], 'until', string.format('%d', wanted), 'reason', ARGV[2])
  redis.call('HINCRBY', KEYS[1], 'held_ms:' .. ARGV[2], wanted - math.max(standing, now))
  standing = wanted
end
return {standing, openings, circuit}
