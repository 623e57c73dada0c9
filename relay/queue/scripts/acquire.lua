-- Take a drain's lease if no other drain has it. The wakeup that called is cleared first, so that whoever
-- adds work from here on rings again.
-- A drain leaves a mark of its run until it lets go. One that finds another's mark knows that a drain died at its
-- work, or lost its lease: from then until a drain lets go in peace, entries are handled one at a time, and the
-- mark says which (handle.lua). Each death with an entry in hand is counted against that entry.
-- KEYS  wakeup, lease, run, counts, and for an outbox its cursor and the data set
-- ARGV  token, lease in milliseconds, for an outbox the id of the data set if it has none yet, and milliseconds between
--       two signs of life that make the age of events begin anew (beat.lua)
-- ->    {1, cursor or '', drains that did not let go, the data set's id or '', since when in ms ages are reckoned}
--       taken (or held already by this token), {0} held by another
redis.call('DEL', KEYS[1])
local holder = redis.call('GET', KEYS[2])
if holder and holder ~= ARGV[1] then
  if redis.call('PTTL', KEYS[2]) > math.max(2 * ARGV[2], 600000) then -- the clock was set back since it was taken
    redis.call('PEXPIRE', KEYS[2], ARGV[2])
  end
  return {0}
end
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
local run = redis.call('HMGET', KEYS[3], 'token', 'entry', 'unfinished')
local unfinished = tonumber(run[3] or '0')
if run[1] and run[1] ~= ARGV[1] then
  unfinished = redis.call('HINCRBY', KEYS[3], 'unfinished', 1)
  redis.call('HINCRBY', KEYS[4], 'taken_over', 1)
  if run[2] then
    redis.call('HINCRBY', KEYS[3], 'deaths', 1)
  end
end
redis.call('HSET', KEYS[3], 'token', ARGV[1])
local dataset, steady_since = '', 0
if KEYS[6] then
  redis.call('HSETNX', KEYS[6], 'id', ARGV[3])
  local known = redis.call('HMGET', KEYS[6], 'id', 'steady:expire', 'beat_at')
  local clock = redis.call('TIME')
  local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
  dataset, steady_since = known[1], tonumber(known[2] or '0')
  if math.abs(now - tonumber(known[3] or now)) > tonumber(ARGV[4]) then -- no worker has noted it yet
    steady_since = now
  end
end
return {1, KEYS[5] and redis.call('GET', KEYS[5]) or '', unfinished, dataset, steady_since}
