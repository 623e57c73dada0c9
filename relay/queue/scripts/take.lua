-- What a delivery drain may send next: the first entries of instances whose retry is due, and fresh entries.
-- A fresh entry whose instance waits for a retry is deferred behind it and not returned. A due instance is
-- marked as taken for one lease, so that it comes up again by itself if this drain dies.
-- While the destination is held or the environment paused, nothing is returned.
-- A lease that ran out while nobody took over is taken again: the mark of the run is still this drain's.
-- KEYS  1 lease, 2 outbox, 3 deferred, 4 due, 5 attempts, 6 destination, 7 paused, 8 run
-- ARGV  token, lease in ms, XRANGE start, fresh entries wanted, due instances wanted, environment,
--       1 if only an instance's latest entry counts, the longest pause of a retry in ms
-- ->    {} when the lease is lost; else {now in ms, last id looked at or '', fresh entries,
--       due entries as {attempts value, entry, ids of entries that it supersedes...},
--       the destination's health as observe.lua has it, 1 if the environment is paused}
local holder = redis.call('GET', KEYS[1])
if holder ~= ARGV[1] and (holder or redis.call('HGET', KEYS[8], 'token') ~= ARGV[1]) then
  return {}
end
local MAX_FORGOTTEN = 1000  -- deferred entries without a stream entry, in one go
local MAX_HOLD_MS = 600000    -- a hold that is farther ahead was set by a clock that was set back since
local MAX_PAUSE_MS = tonumber(ARGV[8]) -- the same of a retry
local MAX_SUPERSEDED = 1000 -- entries of one instance that one retry supersedes
local MAX_BYTES = 8388608   -- of fresh events in one reply; the others are taken with the next
redis.call('DEL', KEYS[1]) -- first: at maxmemory a script may write once it began with a delete
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local health = redis.call('HMGET', KEYS[6], 'until', 'reason', 'openings', 'failures', 'successes', 'window',
                         'circuit')
for i = 1, 7 do
  health[i] = health[i] or ''
end
local paused = redis.call('HEXISTS', KEYS[7], ARGV[6])
local held_until = tonumber(health[1]) or 0
if paused == 1 or (held_until > now and held_until <= now + MAX_HOLD_MS) then
  return {now, '', {}, {}, health, paused}
end

local function padded(id)
  local ms, n = string.match(id, '^(%d+)%-(%d+)$')
  return string.rep('0', 20 - #ms) .. ms .. '-' .. string.rep('0', 20 - #n) .. n
end

local function entry_of(member)
  local ms, n = string.match(member, '\n0*(%d+)%-0*(%d+)$')
  return redis.call('XRANGE', KEYS[2], ms .. '-' .. n, ms .. '-' .. n)[1]
end

-- The first deferred entry of an instance that is still there; those that were deleted by hand are forgotten.
local function first_deferred(instance)
  for _ = 1, MAX_FORGOTTEN do
    local head = redis.call('ZRANGEBYLEX', KEYS[3], '[' .. instance .. '\n', '(' .. instance .. '\011',
                            'LIMIT', 0, 1)[1]
    if not head then
      redis.call('ZREM', KEYS[4], instance)
      redis.call('HDEL', KEYS[5], instance)
      return nil
    end
    local entry = entry_of(head)
    if entry then
      return entry
    end
    redis.call('ZREM', KEYS[3], head)
    redis.call('HDEL', KEYS[5], instance)
  end
end

-- The latest deferred entry of an instance instead of its first, with those that it supersedes.
local function latest_deferred(instance, first)
  local members = redis.call('ZRANGEBYLEX', KEYS[3], '[' .. instance .. '\n', '(' .. instance .. '\011',
                             'LIMIT', 0, MAX_SUPERSEDED)
  local latest, superseded = first, {}
  for i = 2, #members do
    local entry = entry_of(members[i])
    if entry then
      superseded[#superseded + 1] = latest[1]
      latest = entry
    end
  end
  return latest, superseded
end

local due = {}
if tonumber(ARGV[5]) > 0 then
  for _, instance in ipairs(redis.call('ZRANGEBYSCORE', KEYS[4], now + MAX_PAUSE_MS, '+inf', 'LIMIT', 0, ARGV[5])) do
    redis.call('ZADD', KEYS[4], now, instance)
  end
  for _, instance in ipairs(redis.call('ZRANGEBYSCORE', KEYS[4], '-inf', now, 'LIMIT', 0, ARGV[5])) do
    local entry, superseded = first_deferred(instance), {}
    if entry then
      redis.call('ZADD', KEYS[4], now + ARGV[2], instance)
      if ARGV[7] == '1' then
        entry, superseded = latest_deferred(instance, entry)
      end
      local attempts = #superseded == 0 and redis.call('HGET', KEYS[5], instance) or ''
      due[#due + 1] = {attempts, entry, unpack(superseded)}
    end
  end
end

local fresh, last = {}, ''
if tonumber(ARGV[4]) > 0 then
  local entries = redis.call('XRANGE', KEYS[2], ARGV[3], '+', 'COUNT', ARGV[4])
  local bytes = 0
  for i, entry in ipairs(entries) do
    bytes = bytes + #entry[2][2] -- the event, which accept.lua puts first
    if bytes > MAX_BYTES and i > 1 then
      for j = #entries, i, -1 do
        entries[j] = nil
      end
      break
    end
  end
  if #entries > 0 then
    last = entries[#entries][1]
  end
  if redis.call('EXISTS', KEYS[4]) == 0 then
    fresh = entries
  else
    for _, entry in ipairs(entries) do
      local instance
      for i = 1, #entry[2], 2 do
        if entry[2][i] == 'instance' then
          instance = entry[2][i + 1]
        end
      end
      if instance and redis.call('ZSCORE', KEYS[4], instance) then
        redis.call('ZADD', KEYS[3], 0, instance .. '\n' .. padded(entry[1]))
      else
        fresh[#fresh + 1] = entry
      end
    end
  end
end
return {now, last, fresh, due, health, 0}
