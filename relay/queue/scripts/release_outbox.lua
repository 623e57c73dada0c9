-- Release an outbox, schedule its next run, and return whether that is due now. One step, so that an entry is seen
-- either here or by the intake run that finds no lease. A paused environment is scheduled when it is resumed.
-- `unsent` are the instances whose retry was claimed and not committed: they are due again.
-- ->    -1 when the lease is lost; 1 if more is to be done now, for which the caller must send a wake-up; else 0
if not holds_lease(lease_key, run_key, token) then
  return -1
end
call('DEL', lease_key, run_key)
local now = now_ms()
local waiting = call('XLEN', outbox_key)

-- Entries that are counted as waiting and are not in the stream were deleted by an operator: count them as lost.
local lost = tonumber(call('HGET', outbox_counts_key, 'outbox') or '0') - waiting
if lost ~= 0 then
  for _, key in ipairs({outbox_counts_key, counts_key}) do
    call('HINCRBY', key, 'outbox', -lost)
    call('HINCRBY', key, 'lost', lost)
  end
end

if waiting == 0 then
  call('DEL', outbox_key, deferred_key, due_key, attempts_key, cursor_key)
  if call('ZREM', schedule_key, environment) == 1 then -- something was done since it was empty before
    call('HSET', outbox_counts_key, 'seen', now)
  end
  return 0
end

for at = unsent_first, unsent_last do
  call('ZADD', due_key, 'XX', now, ARGV[at])
end
local next_run = now
if #call('XRANGE', outbox_key, cursor, '+', 'COUNT', 1) > 0 then
  call('SET', cursor_key, cursor)
elseif waiting > call('ZCARD', deferred_key) then
  call('DEL', cursor_key) -- entries before the cursor that are not deferred: begin at the beginning
else
  call('SET', cursor_key, cursor)
  local first = call('ZRANGE', due_key, 0, 0, 'WITHSCORES')
  next_run = tonumber(first[2] or now)
end
local is_paused = call('HEXISTS', paused_key, environment) == 1
call('ZADD', schedule_key, is_paused and '+inf' or next_run, environment)
if is_paused or is_healthy == '0' or next_run > now then
  return 0
end
call('HINCRBY', counts_key, 'wakeup:work', 1)
call('SET', wakeup_key, '1', 'PX', wakeup_ms)
return 1
