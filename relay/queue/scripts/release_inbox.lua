-- Release the inbox and count what it still holds, in one step: an entry that is added is either counted here or noticed
-- by the poller, which finds no lease.
-- Returns how many entries wait, for which the caller must send a wake-up; -1 if the lease was lost before.
if not holds_lease(lease_key, run_key, token) then
  return -1
end
call('DEL', lease_key, run_key)
local waiting = call('XLEN', inbox_key)
if waiting > 0 then
  call('SET', wakeup_key, '1', 'PX', wakeup_ms)
  call('HINCRBY', counters_key, 'wakeup:work', 1)
end
return waiting
