-- Set the in-flight marker to the one entry that a run has in hand, before the run does anything with it.
-- Returns how many runs died with this entry in hand; -1 if the lease is lost.
if not holds_lease(lease_key, run_key, token) then
  return -1
end
local run = call('HMGET', run_key, 'entry', 'deaths')
if run[1] == entry_id then
  return tonumber(run[2] or '0')
end
call('HDEL', run_key, 'deaths') -- first: at maxmemory a script may write once it began with a delete
call('HSET', run_key, 'entry', entry_id)
return 0
