-- Record what became of entries of one outbox: delivered, dead, superseded, or deferred for a retry. Atomic, fenced by
-- the lease, and harmless when applied twice (a retry whose answer was lost): then none of the entries is left to
-- delete, and nothing else is done.
-- A lease that ran out while nobody took over is taken again: the mark of the run is still this drain's.
--
-- KEYS  1 lease, 2 run, 3 outbox, 4 deferred, 5 due, 6 attempts, 7 accepted state, 8 delivered state, 9 cursor,
--       10 the outbox's counts, 11 counts, 12 latency, 13 dead, 14 paused, 15 what the receipts' keys begin with,
--       16 environments
-- ARGV  token, lease in ms, cursor, destination, environment, ms to keep a receipt, when the newest that is
--           delivered came in ms,
--       number of delivered entries that ask for a receipt, the event id of each
--       number delivered, for each: id, instance, 1 if it was deferred, digest, time, when it came
--       number superseded, for each: id, instance, 1 if it was deferred
--       number dead, for each: id, instance, 1 if it was deferred, event id, reason, detail, status, attempts,
--           when it was first tried or ''
--       number to retry, for each: id, instance, pause in ms, attempts value, number of followers, their ids
--       number of other counters, for each: field of counts, by how much
--       then latency histogram: bucket, deliveries, ...
-- ->    -1 when the lease is lost; else 1 if the environment is paused, 0 if not
local holder = redis.call('GET', KEYS[1])
if holder ~= ARGV[1] and (holder or redis.call('HGET', KEYS[2], 'token') ~= ARGV[1]) then
  return -1
end
redis.call('DEL', KEYS[1]) -- first: at maxmemory a script may write once it began with a delete
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) -- not PEXPIRE: the drain goes on, so it must hold it again
local paused = redis.call('HEXISTS', KEYS[14], ARGV[5])
local MAX_UNPACKED = 5000 -- values of one command; Lua's stack takes about 8,000
local at = 8
local function next_argument()
  local value = ARGV[at]
  at = at + 1
  return value
end
local function next_arguments(n)
  local values = {unpack(ARGV, at, at + n - 1)}
  at = at + n
  return values
end
local function padded(id)
  local ms, n = string.match(id, '^(%d+)%-(%d+)$')
  return string.rep('0', 20 - #ms) .. ms .. '-' .. string.rep('0', 20 - #n) .. n
end

-- Read first, then delete, then write: at maxmemory a script may write once its first write frees memory.
local delivered, superseded, dead, retries, ids = {}, {}, {}, {}, {}
local receipts = {}
local function note(event_id, status, detail)
  receipts[#receipts + 1] = {event_id, status, detail}
end
-- Note what became of an entry of which only the stream knows whether it asks for a receipt.
local function note_fields(fields, status, detail)
  local event_id, asks
  for i = 1, #fields, 2 do
    event_id = fields[i] == 'id' and fields[i + 1] or event_id
    asks = asks or fields[i] == 'receipt'
  end
  if asks then
    note(event_id, status, detail)
  end
end
for _ = 1, tonumber(next_argument()) do
  note(next_argument(), 'delivered', '')
end
local leaving = tonumber(ARGV[at])
for _ = 1, tonumber(next_argument()) do
  ids[#ids + 1] = ARGV[at]
  delivered[#delivered + 1] = at -- the position of its id among the arguments
  at = at + 6
end
leaving = leaving + tonumber(ARGV[at])
for _ = 1, tonumber(next_argument()) do
  local item = next_arguments(3)
  superseded[#superseded + 1] = item
  ids[#ids + 1] = item[1]
  local entry = redis.call('XRANGE', KEYS[3], item[1], item[1])[1]
  if entry then
    note_fields(entry[2], 'superseded', '')
  end
end
leaving = leaving + tonumber(ARGV[at])
for _ = 1, tonumber(next_argument()) do
  local item = next_arguments(9)
  local entry = redis.call('XRANGE', KEYS[3], item[1], item[1])[1]
  if entry then
    item.fields = entry[2]
    note_fields(entry[2], 'dead', '\n' .. item[5] .. '\n' .. item[6])
    dead[#dead + 1] = item
    ids[#ids + 1] = item[1]
  end
end
for _ = 1, tonumber(next_argument()) do
  local item = next_arguments(5)
  item.followers = next_arguments(tonumber(item[5]))
  retries[#retries + 1] = item
end

if leaving > 0 then
  local deleted = 0
  for i = 1, #ids, MAX_UNPACKED do
    deleted = deleted + redis.call('XDEL', KEYS[3], unpack(ids, i, math.min(i + MAX_UNPACKED - 1, #ids)))
  end
  if deleted == 0 then -- recorded before, or deleted by hand: what is left to see to are the retries
    if #retries == 0 then
      return paused
    end
    delivered, superseded, dead, receipts, ids, leaving = {}, {}, {}, {}, {}, 0
  end
end
-- Whoever handled it alone lives: a later death, over an entry of another outbox, must not count against it.
local alone, is_settled = redis.call('HGET', KEYS[2], 'entry'), false
for _, id in ipairs(alone and ids or {}) do
  is_settled = is_settled or id == alone
end
for _, item in ipairs(alone and retries or {}) do
  is_settled = is_settled or item[1] == alone
end
if is_settled then
  redis.call('HDEL', KEYS[2], 'entry', 'deaths')
end
redis.call('SET', KEYS[9], ARGV[3])
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

-- An instance's first deferred entry is done: its next one, if any, is due at once.
local function undefer(instance, id)
  redis.call('ZREM', KEYS[4], instance .. '\n' .. padded(id))
  redis.call('HDEL', KEYS[6], instance)
  local following = redis.call('ZRANGEBYLEX', KEYS[4], '[' .. instance .. '\n', '(' .. instance .. '\011',
                               'LIMIT', 0, 1)
  if #following > 0 then
    redis.call('ZADD', KEYS[5], now, instance)
  else
    redis.call('ZREM', KEYS[5], instance)
  end
end

local function newest(one, other)
  return tonumber(one) and (not tonumber(other) or tonumber(one) > tonumber(other)) and one or other
end

-- A dead letter gives its state back: if it was the last accepted, what counts is again what was last delivered, with
-- the newest time that is known without it: that of what was delivered, or what a duplicate repeat_time. Reports of the
-- digest that counts again say that it ran, so their time stays. Either way the event's id is forgotten, so that the
-- same report made later is not taken for a repeat.
-- Returns the newest time that a duplicate gave, if the event was the last accepted.
local function give_back(instance, event_id)
  local state = redis.call('HGET', KEYS[7], instance)
  if not state then
    return
  end
  local lines = {}
  for line in string.gmatch(state .. '\n', '([^\n]*)\n') do
    lines[#lines + 1] = line
  end
  local was_last = lines[#lines] == event_id
  local seen, confirmed = string.match(lines[4], '^(%d+) ?%d* ?(%d*)$') -- without a resync's mark: it may be it
  local repeat_time = string.match(lines[5] or '', '^\t(%d+)$') or ''
  if was_last and confirmed == '' then
    confirmed = '1' -- from here on it is noted when what counts again is reported: later than what died
  end
  local kept = {lines[1], lines[2], lines[3], confirmed == '' and seen or seen .. ' 0 ' .. confirmed}
  for i = 5, #lines do
    if lines[i] ~= event_id then
      kept[#kept + 1] = lines[i]
    end
  end
  if was_last then
    local arrived = redis.call('HGET', KEYS[8], instance)
    if arrived then
      local digest, time, came = string.match(arrived, '^([^\n]*)\n([^\n]*)\n[^\n]*\n([^\n]*)$')
      time = newest(repeat_time, time)
      if digest == lines[1] then
        time = newest(lines[2], time)
      end
      kept[1], kept[2], kept[3] = digest, time, came
    elseif repeat_time ~= '' then
      kept[1], kept[2], kept[3], kept[4] = '', repeat_time, '0', seen -- nothing counts again that could be confirmed
    else
      redis.call('HDEL', KEYS[7], instance)
      return
    end
  end
  redis.call('HSET', KEYS[7], instance, table.concat(kept, '\n'))
  return was_last and repeat_time or ''
end

-- First those that give way to a later one of their instance: whatever is deferred behind them is due when they were,
-- and what is left once the later one is done must not count them.
for _, item in ipairs(superseded) do
  if item[3] == '1' then
    redis.call('ZREM', KEYS[4], item[2] .. '\n' .. padded(item[1]))
    redis.call('HDEL', KEYS[6], item[2])
  end
end

-- An entry without a time sets none back: an older version accepted it without noting the newest that was known.
local without_time, known_times = {}, {}
for _, p in ipairs(delivered) do
  if ARGV[p + 4] == '' then
    without_time[#without_time + 1] = ARGV[p + 1]
  end
end
for i = 1, #without_time, MAX_UNPACKED do
  local last = math.min(i + MAX_UNPACKED - 1, #without_time)
  for j, before in ipairs(redis.call('HMGET', KEYS[8], unpack(without_time, i, last))) do
    known_times[without_time[i + j - 1]] = before and string.match(before, '^[^\n]*\n([^\n]*)')
  end
end

local states = {}
for _, p in ipairs(delivered) do
  local id, instance, deferred, digest, time, came = unpack(ARGV, p, p + 5)
  time = time ~= '' and time or known_times[instance] or ''
  states[#states + 1] = instance
  states[#states + 1] = digest .. '\n' .. time .. '\n' .. now .. '\n' .. came
  if deferred == '1' then
    undefer(instance, id)
  end
end
for i = 1, #states, MAX_UNPACKED do
  redis.call('HSET', KEYS[8], unpack(states, i, math.min(i + MAX_UNPACKED - 1, #states)))
end
for _, item in ipairs(dead) do
  local fields = item.fields
  local repeat_time = give_back(item[2], item[4])
  if repeat_time and repeat_time ~= '' then -- it was reported with that time, too: redriven, it is as new
    for i = 1, #fields, 2 do
      if fields[i] == 'time' and fields[i + 1] ~= '' then
        fields[i + 1] = newest(repeat_time, fields[i + 1])
      end
    end
  end
  for _, extra in ipairs({'reason', item[5], 'detail', item[6], 'status', item[7], 'attempts', item[8],
                          'first', item[9], 'last', item[9] ~= '' and now or '', 'destination', ARGV[4],
                          'environment', ARGV[5], 'entry', item[1]}) do
    fields[#fields + 1] = extra
  end
  redis.call('XADD', KEYS[13], '*', unpack(fields))
  for key = 10, 11 do
    redis.call('HINCRBY', KEYS[key], 'dead', 1)
    redis.call('HINCRBY', KEYS[key], 'dead:' .. item[5], 1)
  end
  if item[3] == '1' then
    undefer(item[2], item[1])
  end
end
local retried = 0
for _, item in ipairs(retries) do
  local deferred = redis.call('ZADD', KEYS[4], 0, item[2] .. '\n' .. padded(item[1]))
  if deferred == 1 or redis.call('HGET', KEYS[6], item[2]) ~= item[4] then -- else it was recorded before
    for _, follower in ipairs(item.followers) do
      redis.call('ZADD', KEYS[4], 0, item[2] .. '\n' .. padded(follower))
    end
    redis.call('ZADD', KEYS[5], now + item[3], item[2])
    redis.call('HSET', KEYS[6], item[2], item[4])
    retried = retried + 1
  end
end

for key = 10, 11 do
  if #delivered > 0 then
    redis.call('HINCRBY', KEYS[key], 'delivered', #delivered)
  end
  if #superseded > 0 then
    redis.call('HINCRBY', KEYS[key], 'superseded', #superseded)
  end
  if retried > 0 then
    redis.call('HINCRBY', KEYS[key], 'retries', retried)
  end
end
if leaving > 0 then
  for key = 10, 11 do
    redis.call('HINCRBY', KEYS[key], 'outbox', -#ids)
  end
end
for _, receipt in ipairs(receipts) do
  redis.call('SET', KEYS[15] .. receipt[1], receipt[2] .. '\n' .. now .. receipt[3], 'PX', ARGV[6])
end
if #delivered > 0 then
  redis.call('ZINCRBY', KEYS[16], #delivered, ARGV[5])
  local newest = tonumber(redis.call('HGET', KEYS[11], 'newest:delivered') or '0')
  redis.call('HSET', KEYS[11], 'delivered_at', now, 'newest:delivered', math.max(newest, ARGV[7]))
end
local recorded_before = leaving == 0 and retried == 0
for _ = 1, tonumber(next_argument()) do
  local counter, by = next_argument(), next_argument()
  if not recorded_before then
    redis.call('HINCRBY', KEYS[11], counter, by)
  end
end
while ARGV[at] do
  local bucket, deliveries = next_argument(), next_argument()
  if #delivered > 0 then
    redis.call('HINCRBY', KEYS[12], bucket, deliveries)
  end
end
return paused
