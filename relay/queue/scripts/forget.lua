-- Forget instances: their accepted state, delivered state and absence. An instance is kept if its state is not the one
-- that was read (it was seen meanwhile), or if it has an event in the outbox. If the outbox has more entries than this
-- script may read, all are kept until the next walk.
-- KEYS  outbox, accepted state, delivered state, gone
-- ARGV  maximum entries and bytes of the outbox, then for each instance: its key, the state that was read
-- ->    number of instances forgotten
if redis.call('XLEN', KEYS[1]) > tonumber(ARGV[1]) then
  return 0
end
local bytes = redis.pcall('MEMORY', 'USAGE', KEYS[1], 'SAMPLES', 0) -- an error where the command is renamed
if type(bytes) == 'number' and bytes > tonumber(ARGV[2]) then
  return 0
end
local waiting = {}
for _, entry in ipairs(redis.call('XRANGE', KEYS[1], '-', '+')) do
  for i = 1, #entry[2], 2 do
    if entry[2][i] == 'instance' then
      waiting[entry[2][i + 1]] = true
    end
  end
end
local forgotten = 0
for i = 3, #ARGV, 2 do
  local instance = ARGV[i]
  if not waiting[instance] and redis.call('HGET', KEYS[2], instance) == ARGV[i + 1] then
    redis.call('HDEL', KEYS[2], instance)
    redis.call('HDEL', KEYS[3], instance)
    redis.call('HDEL', KEYS[4], instance)
    forgotten = forgotten + 1
  end
end
return forgotten
