-- Commit an intake run's decisions on inbox entries of one environment: delete the entries, set the instances' states,
-- add accepted events to the outbox, count all. Atomic, fenced by the lease, and harmless when applied twice (a retry
-- whose reply was lost): the states then differ from the expected ones, or none of the entries is left to delete.
--
-- Nothing is committed if an instance's state is not the one that the decisions are based on (delivery restored it
-- meanwhile): the caller commits the others, and decides again on what is left in the inbox.
--
-- Keys after the declared ones are those of the receipts, in the order of the list `receipts`.
-- Returns {'lease lost'}, {'conflict', positions of the instances that changed...}, or
-- {'committed', entries, 1 if the environment needs a wake-up}.
if not holds_lease(lease_key, run_key, token) then
  return {'lease lost'}
end

local states = call('HMGET', accepted_key, unpack(ARGV, instances_first, instances_last))
local changed = {'conflict'}
for i = 1, instances_n do
  if (states[i] or '') ~= ARGV[expected_first + i - 1] then
    changed[#changed + 1] = i
  end
end
if #changed > 1 then
  return changed
end

-- Delete first: at maxmemory a script may write once its first write frees memory.
local deleted = call_with_all('XDEL', inbox_key, ARGV, ids_first, ids_last)
renew_lease(lease_key, token, lease_ms)
if deleted == 0 then
  return {'committed', 0, 0}
end
call_with_all('HDEL', internal_key, ARGV, internal_first, internal_last)
if call('HEXISTS', dataset_key, 'internal_after') == 0 then
  -- The first batch with this version. In a data set that is older, what lies there may be from an older redrive.
  local last = '0-0'
  if call('HEXISTS', counters_key, 'taken') == 1 then
    local stream = call('XINFO', 'STREAM', inbox_key)
    for i = 1, #stream, 2 do
      last = stream[i] == 'last-generated-id' and stream[i + 1] or last
    end
  end
  call('HSET', dataset_key, 'internal_after', last)
end

call_with_all('HSET', accepted_key, ARGV, states_first, states_last)
for at = entries_first, entries_last, ENTRIES_SIZE do
  add_entry(outbox_key, at)
end

local now = now_ms()
call('HINCRBY', counters_key, 'taken', ids_n)
call('ZADD', environments_key, 'NX', 0, environment)
call('HSET', environment_counters_key, 'seen', now)
for at = decisions_first, decisions_last, DECISIONS_SIZE do
  call('HINCRBY', counters_key, ARGV[at], ARGV[at + DECISIONS_EVENTS])
  call('HINCRBY', environment_counters_key, ARGV[at], ARGV[at + DECISIONS_EVENTS])
end

local needs_wakeup = 0
if entries_n > 0 then
  call('HINCRBY', counters_key, 'outbox', entries_n)
  call('HINCRBY', environment_counters_key, 'outbox', entries_n)
  if tonumber(newest) > tonumber(call('HGET', counters_key, 'newest:accepted') or '0') then
    call('HSET', counters_key, 'newest:accepted', newest)
  end
  call('ZADD', schedule_key, 'LT', now, environment)
  if call('EXISTS', outbox_lease_key) == 0 and call('SET', wakeup_key, '1', 'NX', 'PX', wakeup_ms) then
    needs_wakeup = 1
    call('HINCRBY', counters_key, 'wakeup:work', 1)
  end
end

for i = 0, receipts_n - 1 do
  -- An event that is not delivered may repeat one that is: then the receipt is that one's. A receipt of a dead letter
  -- gives way: a producer that reports again begins it anew (append.lua), so what follows a dead letter was redriven.
  local key = KEYS[KEYS_DECLARED + 1 + i]
  local at = receipts_first + i * RECEIPTS_SIZE
  local status, lines = ARGV[at], ARGV[at + RECEIPTS_LINES]
  if status == 'accepted' then
    call('SET', key, status .. '\n' .. now, 'PX', waiting_receipt_ms)
  else
    local value = call('GET', key) or 'queued'
    local before = string.match(value, '^%l*')
    if before == 'queued' or before == 'dead' or status == 'superseded' then
      call('SET', key, status .. '\n' .. now .. lines, 'PX', receipt_ms)
    elseif string.sub(value, -9) == '\nrepeated' then
      call('SET', key, string.sub(value, 1, -10), 'PX', receipt_ms)
    end
  end
end
return {'committed', ids_n, needs_wakeup}
