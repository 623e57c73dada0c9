-- Note changes of instances, and find those that two sources change in turns: A to X, B to Y, A back to X.
-- The sample of instances is bounded: when it is full, the level rises, and only instances stay whose bucket is a
-- multiple of 2^level. So the same instances are followed over days, however many others change.
--
-- KEYS  1 sample, 2 contested
-- ARGV  most instances in the sample, most contested ones, lifetimes of either in ms,
--       for each change: bucket, instance, source, digest, digest before
-- ->    the level
local most, most_contested, sample_ms, contested_ms = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], ARGV[4]
local UNKNOWN = '\t' -- a source that was not seen; no source has a control character
local SAME_SOURCE = 3 -- returns after which reports without a source are taken for those of two
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local level = tonumber(redis.call('HGET', KEYS[1], 'level') or '0')

local function write_contested(instance, source, other, returns)
  if redis.call('HEXISTS', KEYS[2], instance) == 0 and redis.call('HLEN', KEYS[2]) >= most_contested then
    return
  end
  local value = string.format('%d', now) .. '\n' .. returns .. '\n' .. source .. '\n' .. other
  redis.call('HSET', KEYS[2], instance, value)
  redis.call('PEXPIRE', KEYS[2], contested_ms)
end

-- Drop what was not contested any more for as long as it is kept; the hash has at most `most_contested` fields.
local entries = redis.call('HGETALL', KEYS[2])
for i = 1, #entries, 2 do
  if tonumber(string.match(entries[i + 1], '^%d+')) < now - contested_ms then
    redis.call('HDEL', KEYS[2], entries[i])
  end
end

local is_new = redis.call('EXISTS', KEYS[1]) == 0
for at = 5, #ARGV, 5 do
  local bucket, instance, source, digest, before = unpack(ARGV, at, at + 4)
  if bucket % 2 ^ level == 0 then
    local value = redis.call('HGET', KEYS[1], 'of:' .. instance)
    local last_source, last_digest, other_source, other_digest, returns = UNKNOWN, before, UNKNOWN, '', 0
    if value then
      local _, a, b, c, d, e = string.match(value, '^([^\n]*)\n([^\n]*)\n([^\n]*)\n([^\n]*)\n([^\n]*)\n(%d+)$')
      if b == before then -- else changes in between were not seen
        last_source, last_digest, other_source, other_digest, returns = a, b, c, d, tonumber(e)
      end
    end
    local is_return = digest == other_digest and (other_source == source or other_source == UNKNOWN)
    returns = is_return and returns + 1 or 0
    if is_return and (source ~= last_source or (source == '' and returns >= SAME_SOURCE)) then
      write_contested(instance, source, last_source, returns)
    end
    redis.call('HSET', KEYS[1], 'of:' .. instance,
               table.concat({bucket, source, digest, last_source, last_digest, returns}, '\n'))
  end
end
if is_new then
  redis.call('PEXPIRE', KEYS[1], sample_ms)
end

if redis.call('HLEN', KEYS[1]) > most then
  local sample = redis.call('HGETALL', KEYS[1])
  local left = #sample / 2
  while left > most / 2 and level < 32 do
    level = level + 1
    for i = 1, #sample, 2 do
      local bucket = sample[i] and sample[i] ~= 'level' and string.match(sample[i + 1], '^%d+')
      if bucket and bucket % 2 ^ level ~= 0 then
        redis.call('HDEL', KEYS[1], sample[i])
        sample[i] = false
        left = left - 1
      end
    end
  end
  redis.call('HSET', KEYS[1], 'level', level)
end
return level
