-- Find the runs that need a wake-up: those whose lease no run holds, and to which no wake-up is under way. A wake-up
-- counts as under way from here on.
-- Keys after the declared ones: lease and wake-up of each run.
-- Returns the positions, from 1, of the runs to wake up.
local found = {}
local longest = math.max(2 * wakeup_ms, 600000) -- that a lease or a wake-up may last: longer, and the clock was set back
for i = KEYS_DECLARED + 1, #KEYS, 2 do
  for key = i, i + 1 do
    if call('PTTL', KEYS[key]) > longest then
      call('PEXPIRE', KEYS[key], wakeup_ms)
    end
  end
  -- A delete of a key that does not exist frees nothing, but at maxmemory a script may write once it began with one.
  if call('EXISTS', KEYS[i]) == 0 and call('DEL', KEYS[i]) == 0
      and call('SET', KEYS[i + 1], '1', 'NX', 'PX', wakeup_ms) then
    found[#found + 1] = (i - KEYS_DECLARED + 1) / 2
  end
end
if #found > 0 then
  call('HINCRBY', counters_key, 'wakeup:' .. why, #found)
end
return found
