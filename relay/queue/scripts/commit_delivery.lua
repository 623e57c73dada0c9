-- Record the outcomes of entries of one outbox: delivered, superseded, dead, or deferred for a retry. Atomic, fenced
-- by the lease, and harmless when applied twice (its first reply was lost): then no entry is left to delete.
-- A dead letter sets its instance's state from `expected` to `restored`. If the state is another one by now (intake has
-- accepted an event of the instance meanwhile), nothing at all is recorded.
--
-- `done` are the ids of the delivered and the superseded entries. `undeferred` are those of both that were deferred, the
-- superseded first. The first receipts among the keys are those of `receipts`, which are done; the others belong to
-- dead letters, which name them by position.
-- ->    nil when the lease is lost; else {1 if the environment is paused, 1 if a state was not the expected one}
if not holds_lease(lease_key, run_key, token) then
  return nil
end
renew_lease(lease_key, token, lease_ms)
local now = now_ms()
local is_paused = call('HEXISTS', paused_key, environment)

-- Read before anything is deleted; delete before anything is written: at maxmemory a script may write once its first
-- write frees memory.
local dead_letters = {}
for at = dead_first, dead_last, DEAD_SIZE do
  local id = ARGV[at + DEAD_ID]
  local entry = call('XRANGE', outbox_key, id, id)[1]
  if entry and (call('HGET', accepted_key, ARGV[at + DEAD_INSTANCE]) or '') ~= ARGV[at + DEAD_EXPECTED] then
    return {is_paused, 1}
  elseif entry then
    dead_letters[at] = entry[2]
  end
end
local done_deleted = call_with_all('XDEL', outbox_key, ARGV, done_first, done_last)
local dead_deleted = 0
for at in pairs(dead_letters) do
  dead_deleted = dead_deleted + call('XDEL', outbox_key, ARGV[at + DEAD_ID])
end
local is_new = done_deleted + dead_deleted > 0
if done_n + dead_n > 0 and not is_new and retries_n == 0 then
  return {is_paused, 0}
end
call('SET', cursor_key, cursor)

-- The in-flight marker goes with its entry: a later crash must not count against it.
local marked = call('HGET', run_key, 'entry')
local function unmark(first, last, size)
  for at = first, last, size do
    if ARGV[at] == marked then
      call('HDEL', run_key, 'entry', 'deaths')
    end
  end
end
if marked then
  unmark(done_first, done_last, 1)
  unmark(dead_first, dead_last, DEAD_SIZE)
  unmark(retries_first, retries_last, RETRIES_SIZE)
end

local function count(name, by)
  if by ~= 0 then
    call('HINCRBY', outbox_counts_key, name, by)
    call('HINCRBY', counts_key, name, by)
  end
end

-- A deferred entry is done: the next one of its instance is due now.
local function undefer(instance, member)
  call('ZREM', deferred_key, member)
  call('HDEL', attempts_key, instance)
  local following = call('ZRANGEBYLEX', deferred_key, '[' .. instance .. '\n', '(' .. instance .. '\011',
                         'LIMIT', 0, 1)
  if #following > 0 then
    call('ZADD', due_key, now, instance)
  else
    call('ZREM', due_key, instance)
  end
end

if is_new then
  for at = undeferred_first, undeferred_last, UNDEFERRED_SIZE do
    local instance, member = ARGV[at + UNDEFERRED_INSTANCE], ARGV[at + UNDEFERRED_MEMBER]
    if ARGV[at + UNDEFERRED_STATUS] == 'delivered' then
      undefer(instance, member)
    else -- the entry that supersedes it stays claimed, and has trials of its own
      call('ZREM', deferred_key, member)
      call('HDEL', attempts_key, instance)
    end
  end
  if states_n > 0 then
    call_with_all('HSET', delivered_key, ARGV, states_first, states_last)
    call('ZINCRBY', environments_key, states_n, environment)
    local newest_before = tonumber(call('HGET', counts_key, 'newest:delivered') or '0')
    call('HSET', counts_key, 'delivered_at', now, 'newest:delivered', math.max(newest_before, newest))
  end
  for i = 0, receipts_n - 1 do
    call('SET', KEYS[KEYS_DECLARED + 1 + i], ARGV[receipts_first + i] .. '\n' .. now, 'PX', receipt_ms)
  end
  count('delivered', states_n)
  count('superseded', done_n - states_n)
  count('outbox', -done_n - dead_deleted)
end

local function bury(at, fields, added_first, added_last)
  local instance, restored = ARGV[at + DEAD_INSTANCE], ARGV[at + DEAD_RESTORED]
  if restored == '' then
    call('HDEL', accepted_key, instance)
  elseif restored ~= ARGV[at + DEAD_EXPECTED] then
    call('HSET', accepted_key, instance, restored)
  end
  local position_of = {}
  for i = 1, #fields, 2 do
    position_of[fields[i]] = i
  end
  for added = added_first, added_last, ADDED_SIZE do
    local i = position_of[ARGV[added + ADDED_NAME]] or #fields + 1
    fields[i], fields[i + 1] = ARGV[added + ADDED_NAME], ARGV[added + ADDED_VALUE]
  end
  call('XADD', dead_key, '*', unpack(fields))
  count('dead', 1)
  count('dead:' .. ARGV[at + DEAD_REASON], 1)
  if ARGV[at + DEAD_MEMBER] ~= '' then
    undefer(instance, ARGV[at + DEAD_MEMBER])
  end
  if ARGV[at + DEAD_RECEIPT] ~= '' then
    local receipt_key = KEYS[KEYS_DECLARED + ARGV[at + DEAD_RECEIPT]]
    call('SET', receipt_key, 'dead\n' .. now .. ARGV[at + DEAD_RECEIPT_LINES], 'PX', receipt_ms)
  end
end

local added_at = added_first -- the fields of the dead letters follow each other
for at = dead_first, dead_last, DEAD_SIZE do
  local next_added = added_at + ARGV[at + DEAD_ADDED_N] * ADDED_SIZE
  if dead_letters[at] then
    bury(at, dead_letters[at], added_at, next_added - 1)
  end
  added_at = next_added
end

local retried = 0
for at = retries_first, retries_last, RETRIES_SIZE do
  local instance, trials = ARGV[at + RETRIES_INSTANCE], ARGV[at + RETRIES_TRIALS]
  local is_deferred_now = call('ZADD', deferred_key, 0, ARGV[at + RETRIES_MEMBER]) == 1
  if is_deferred_now or call('HGET', attempts_key, instance) ~= trials then -- else it was recorded before
    call('ZADD', due_key, now + ARGV[at + RETRIES_PAUSE_MS], instance)
    call('HSET', attempts_key, instance, trials)
    retried = retried + 1
  end
end
call_with_all('ZADD', deferred_key, ARGV, blocked_first, blocked_last)
count('retries', retried)

if is_new or retried > 0 then
  for at = counters_first, counters_last, COUNTERS_SIZE do
    call('HINCRBY', counts_key, ARGV[at + COUNTERS_NAME], ARGV[at + COUNTERS_BY])
  end
end
if is_new and states_n > 0 then
  for at = latency_first, latency_last, LATENCY_SIZE do
    call('HINCRBY', latency_key, ARGV[at + LATENCY_BUCKET], ARGV[at + LATENCY_BY])
  end
end
return {is_paused, 0}
