-- Defer the fresh entries whose instance waits for a retry, so that none overtakes it.
-- ->    nil when the lease is lost; else the positions of the deferred entries, from 1
if not holds_lease(lease_key, run_key, token) then
  return nil
end
renew_lease(lease_key, token, lease_ms)
local positions = {}
for at = entries_first, entries_last, ENTRIES_SIZE do
  if call('ZSCORE', due_key, ARGV[at + ENTRIES_INSTANCE]) then
    call('ZADD', deferred_key, 0, ARGV[at + ENTRIES_MEMBER])
    positions[#positions + 1] = (at - entries_first) / ENTRIES_SIZE + 1
  end
end
return positions
