-- Delete dead letters. Harmless when applied twice: a letter that no longer exists is not counted.
-- KEYS  dead, counts
-- ARGV  ids
-- ->    letters dropped
local dropped = redis.call('XDEL', KEYS[1], unpack(ARGV))
if dropped > 0 then
  redis.call('HINCRBY', KEYS[2], 'dropped', dropped)
end
return dropped
