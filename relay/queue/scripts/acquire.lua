-- Acquire the lease of a run, unless another run holds it. The wake-up is deleted first, so that work which is added
-- from here on sends another one.
-- A run sets an in-flight marker, which its release deletes. A run that finds the marker of another knows that this one
-- died, or lost its lease: from then until a run releases, entries are handled one at a time, and the marker names the
-- entry in hand (handle.lua). Each death with an entry in hand is counted against that entry.
-- Keys after the declared ones, for an outbox: its cursor, and the data set.
-- Returns {0} if another run holds the lease; else {1, cursor or '', runs that did not release, the data set's id or '',
-- since when in ms ages are measured}.
local cursor_key, dataset_key = KEYS[KEYS_DECLARED + 1], KEYS[KEYS_DECLARED + 2]
call('DEL', wakeup_key)
local holder = call('GET', lease_key)
if holder and holder ~= token then
  if call('PTTL', lease_key) > math.max(2 * lease_ms, 600000) then -- the clock was set back since it was acquired
    call('PEXPIRE', lease_key, lease_ms)
  end
  return {0}
end
call('SET', lease_key, token, 'PX', lease_ms)
local run = call('HMGET', run_key, 'token', 'entry', 'unfinished')
local unfinished = tonumber(run[3] or '0')
if run[1] and run[1] ~= token then
  unfinished = call('HINCRBY', run_key, 'unfinished', 1)
  call('HINCRBY', counters_key, 'taken_over', 1)
  if run[2] then
    call('HINCRBY', run_key, 'deaths', 1)
  end
end
call('HSET', run_key, 'token', token)
if not dataset_key then
  return {1, '', unfinished, '', 0}
end
call('HSETNX', dataset_key, 'id', new_dataset)
local known = call('HMGET', dataset_key, 'id', 'steady:expire', 'beat_at')
local now = now_ms()
local steady_since = tonumber(known[2] or '0')
if math.abs(now - tonumber(known[3] or now)) > tonumber(gap_ms) then -- no worker has noted it yet
  steady_since = now
end
return {1, call('GET', cursor_key) or '', unfinished, known[1], steady_since}
