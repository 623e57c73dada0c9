-- Functions that the scripts share. Each script runs as this file, then the names that Python declares for its keys and
-- arguments (scripts/__init__.py), then its own text.
local ARGV, KEYS, call = ARGV, KEYS, redis.call -- locals are faster than globals

-- Values of one command: Lua's stack takes about 8,000.
local MAX_UNPACKED = 5000

-- Return Redis's time in milliseconds since the epoch.
local function now_ms()
  local clock = call('TIME')
  return clock[1] * 1000 + math.floor(clock[2] / 1000)
end

-- Return whether the run with this token holds the lease: the fence of every script that commits.
-- A lease that expired is still held while the in-flight marker has this token: no other run has acquired it.
local function holds_lease(lease_key, run_key, token)
  local holder = call('GET', lease_key)
  return holder == token or (not holder and call('HGET', run_key, 'token') == token)
end

-- Extend a lease that is held. Deletes first: at maxmemory a script may write once it began with a delete.
local function renew_lease(lease_key, token, lease_ms)
  call('DEL', lease_key)
  call('SET', lease_key, token, 'PX', lease_ms)
end

-- Return a stream id as text that sorts as the id does.
local function padded(id)
  local ms, n = string.match(id, '^(%d+)%-(%d+)$')
  return string.rep('0', 20 - #ms) .. ms .. '-' .. string.rep('0', 20 - #n) .. n
end

-- Run a command with many values of a table, in as many steps as Lua's stack needs; return the sum of its replies.
local function call_with_all(command, key, values, first, last)
  local sum = 0
  for i = first or 1, last or #values, MAX_UNPACKED do
    sum = sum + call(command, key, unpack(values, i, math.min(i + MAX_UNPACKED - 1, last or #values)))
  end
  return sum
end

-- Return a destination's health as relay/queue/health.py decodes it, '' for each field that is missing.
local function read_health(health_key)
  local health = call('HMGET', health_key, 'until', 'reason', 'openings', 'failures', 'successes', 'window', 'circuit')
  for i = 1, 7 do
    health[i] = health[i] or ''
  end
  return health
end
