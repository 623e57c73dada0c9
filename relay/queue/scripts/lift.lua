-- Lift the hold of a destination, at an operator's word: a throttle ends, and an open circuit is probed at once.
-- KEYS  destination
-- ->    {why it was held or '', until when in ms, until when the throttle would have lasted in ms, 0 for none}
redis.call('HDEL', KEYS[1], '') -- frees nothing, but at maxmemory a script may write once it began with a delete
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local health = redis.call('HMGET', KEYS[1], 'until', 'reason', 'throttled_until', 'openings', 'circuit')
local standing, throttled_until = tonumber(health[1] or '0'), tonumber(health[3] or '0')
local is_open, circuit = tonumber(health[4] or '0') > 0, health[5] or ''
if standing <= now and not is_open then
  return {'', 0, 0}
end
if standing > now then
  redis.call('HINCRBY', KEYS[1], 'held_ms:' .. (health[2] or ''), now - standing)
  redis.call('HSET', KEYS[1], 'until', string.format('%d', now))
end
redis.call('HDEL', KEYS[1], 'throttled_until', 'prober', 'probe_until')
if circuit == 'throttled' then
  redis.call('HDEL', KEYS[1], 'openings', 'circuit')
  redis.call('HSET', KEYS[1], 'window', 1)
end
return {is_open and circuit or health[2] or '', standing, throttled_until > now and throttled_until or 0}
