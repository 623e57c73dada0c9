-- Record what became of a batch of inbox entries: dead letters for the unreadable, a place in an outbox for
-- what is news, a count for all. Atomic, fenced by the lease, and harmless when applied twice (a retry whose
-- answer was lost): then none of the entries is left to delete, and nothing else is done.
--
-- An instance whose state is not the one that the decisions were made on (delivery gave it back meanwhile)
-- is passed over whole; its entries stay in the inbox and are judged again.
--
-- KEYS  1 lease, 2 inbox, 3 dead, 4 counts, 5 schedule, 6 what the receipts' keys begin with, 7 environments,
--       8 internal, 9 dataset, then for each environment its accepted state, outbox, counts, lease, wakeup
-- ARGV  token, lease in ms, wakeup in ms, ms to keep a receipt while its event waits, and after,
--       number of entries that ask for a receipt, for each: inbox id, event id, and for one that is no news the
--           receipt's status if that is not the decision, and its further lines, each with a line feed before it
--       number of unreadable entries, for each: inbox id, reason, detail
--       for each environment: its name, number of instances, their keys, their expected states ('' for none),
--           for each instance: new state, number of entries, for each entry: inbox id,
--               decision ('new', 'changed', 'reasserted', 'duplicate', 'stale'), and for the first three also:
--               body, event id, source, time, the newest time known of the instance if that is another, digest, the entry's field `redriven` or '', and for a resync the
--               place of the event that it repeats, else ''
-- ->    {0} when the lease is lost; else {1, entries passed over, entries done, environments to ring...}
local token, lease_ms, wakeup_ms = ARGV[1], ARGV[2], ARGV[3]
if redis.call('GET', KEYS[1]) ~= token then
  return {0}
end
local waiting_ms, done_ms = ARGV[4], ARGV[5]
local MAX_UNPACKED = 5000  -- values of one command; Lua's stack takes about 8,000
local MAX_DEAD_FIELDS = 64 -- of an unreadable entry, fields and values; what redrive put before them comes on top
local FIRST = 10           -- key of the first environment
local KEYS_EACH = 5        -- keys of an environment
local NEWS_ARGUMENTS = 8   -- that follow the decision of an entry that is news
local news = {new = true, changed = true, reasserted = true}

-- Return a producer's fields without those that only a redrive or a resync may write.
local function without_internal_fields(fields)
  local kept = {}
  for i = 1, #fields, 2 do
    if fields[i] ~= 'redriven' and fields[i] ~= 'resync' then
      kept[#kept + 1] = fields[i]
      kept[#kept + 1] = fields[i + 1]
    end
  end
  return kept
end

-- Read first, then delete, then write: at maxmemory a script may write once its first write frees memory.
-- An entry that is news is noted as the position of its id among the arguments.
local dead, reasons, environments, ids = {}, {}, {}, {}
local asked, receipts = {}, {}
local passed_over = 0
local at = 7
for _ = 1, tonumber(ARGV[6]) do
  asked[ARGV[at]] = {event_id = ARGV[at + 1], status = ARGV[at + 2], lines = ARGV[at + 3]}
  at = at + 4
end
at = at + 1
for _ = 1, tonumber(ARGV[at - 1]) do
  local id = ARGV[at]
  local entry = redis.call('XRANGE', KEYS[2], id, id)[1]
  if entry then
    local given = entry[2]
    if redis.call('HEXISTS', KEYS[8], id) == 0 then
      given = without_internal_fields(given)
    end
    local most = MAX_DEAD_FIELDS + (given[1] == 'redriven' and 2 or 0)
    local fields = {unpack(given, 1, math.min(#given, most))}
    for _, extra in ipairs({'reason', ARGV[at + 1], 'detail', ARGV[at + 2], 'entry', id}) do
      fields[#fields + 1] = extra
    end
    dead[#dead + 1] = fields
    reasons[ARGV[at + 1]] = (reasons[ARGV[at + 1]] or 0) + 1
    ids[#ids + 1] = id
    if asked[id] then
      receipts[#receipts + 1] = {asked[id].event_id, 'dead', '\n' .. ARGV[at + 1] .. '\n' .. ARGV[at + 2]}
    end
  end
  at = at + 3
end
for key = FIRST, #KEYS, KEYS_EACH do
  local environment = {name = ARGV[at], counts = {}, states = {}, positions = {}, instances = {}}
  local n = tonumber(ARGV[at + 1])
  local first = at + 2
  local current = redis.call('HMGET', KEYS[key], unpack(ARGV, first, first + n - 1))
  at = first + 2 * n
  for i = 1, n do
    local instance, expected, new = ARGV[first + i - 1], ARGV[first + n + i - 1], ARGV[at]
    local as_judged = (current[i] or '') == expected
    local entries = tonumber(ARGV[at + 1])
    at = at + 2
    for _ = 1, entries do
      local id, decision = ARGV[at], ARGV[at + 1]
      if not as_judged then
        passed_over = passed_over + 1
      else
        ids[#ids + 1] = id
        if asked[id] then
          local status = asked[id].status ~= '' and asked[id].status or decision
          receipts[#receipts + 1] = {asked[id].event_id, news[decision] and 'accepted' or status, asked[id].lines}
        end
        environment.counts[decision] = (environment.counts[decision] or 0) + 1
        if news[decision] then
          environment.positions[#environment.positions + 1] = at
          environment.instances[#environment.instances + 1] = instance
        end
      end
      at = at + 2 + (news[decision] and NEWS_ARGUMENTS or 0)
    end
    if as_judged and new ~= expected then
      local states = environment.states
      states[#states + 1] = instance
      states[#states + 1] = new
    end
  end
  environments[#environments + 1] = environment
end

local deleted = 0
local has_internal = redis.call('EXISTS', KEYS[8]) == 1
for i = 1, #ids, MAX_UNPACKED do
  deleted = deleted + redis.call('XDEL', KEYS[2], unpack(ids, i, math.min(i + MAX_UNPACKED - 1, #ids)))
  if has_internal then
    redis.call('HDEL', KEYS[8], unpack(ids, i, math.min(i + MAX_UNPACKED - 1, #ids)))
  end
end
redis.call('PEXPIRE', KEYS[1], lease_ms)
if deleted == 0 then
  return {1, passed_over, 0}
end
for _, fields in ipairs(dead) do
  redis.call('XADD', KEYS[3], '*', unpack(fields))
end
if #dead > 0 then
  redis.call('HINCRBY', KEYS[4], 'dead', #dead)
  for reason, n in pairs(reasons) do
    redis.call('HINCRBY', KEYS[4], 'dead:' .. reason, n)
  end
end
if redis.call('HEXISTS', KEYS[9], 'internal_after') == 0 then
  -- The first batch with this version. In a data set that is older, what lies there may be from an older redrive.
  local last = '0-0'
  if redis.call('HEXISTS', KEYS[4], 'taken') == 1 then
    local stream = redis.call('XINFO', 'STREAM', KEYS[2])
    for i = 1, #stream, 2 do
      last = stream[i] == 'last-generated-id' and stream[i + 1] or last
    end
  end
  redis.call('HSET', KEYS[9], 'internal_after', last)
end
redis.call('HINCRBY', KEYS[4], 'taken', #ids)
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local result = {1, passed_over, #ids}
local newest = 0
for number, environment in ipairs(environments) do
  local key = FIRST + KEYS_EACH * (number - 1)
  local states = environment.states
  for i = 1, #states, MAX_UNPACKED do
    redis.call('HSET', KEYS[key], unpack(states, i, math.min(i + MAX_UNPACKED - 1, #states)))
  end
  for i, p in ipairs(environment.positions) do
    local arrived, sequence = string.match(ARGV[p], '^(%d+)%-(%d+)$')
    newest = math.max(newest, arrived)
    local fields = {'event', ARGV[p + 2], 'id', ARGV[p + 3], 'source', ARGV[p + 4], 'time', ARGV[p + 5],
                    'digest', ARGV[p + 7], 'instance', environment.instances[i],
                    'arrived', arrived}
    if sequence ~= '0' then -- events that came in one millisecond: should this one die, its place among them counts
      fields[#fields + 1] = 'sequence'
      fields[#fields + 1] = sequence
    end
    if asked[ARGV[p]] then
      fields[#fields + 1] = 'receipt'
      fields[#fields + 1] = '1'
    end
    if ARGV[p + 6] ~= '' then
      fields[#fields + 1] = 'newest'
      fields[#fields + 1] = ARGV[p + 6]
    end
    if ARGV[p + 8] ~= '' then
      fields[#fields + 1] = 'redriven'
      fields[#fields + 1] = ARGV[p + 8]
    end
    if ARGV[p + 9] ~= '' then
      fields[#fields + 1] = 'resync'
      fields[#fields + 1] = ARGV[p + 9]
    end
    redis.call('XADD', KEYS[key + 1], '*', unpack(fields))
  end
  if next(environment.counts) then
    redis.call('ZADD', KEYS[7], 'NX', 0, environment.name)
    redis.call('HSET', KEYS[key + 2], 'seen', now)
  end
  for decision, n in pairs(environment.counts) do
    redis.call('HINCRBY', KEYS[key + 2], decision, n)
    redis.call('HINCRBY', KEYS[4], decision, n)
  end
  if #environment.positions > 0 then
    redis.call('HINCRBY', KEYS[4], 'outbox', #environment.positions)
    redis.call('HINCRBY', KEYS[key + 2], 'outbox', #environment.positions)
    redis.call('ZADD', KEYS[5], 'LT', now, environment.name)
    if redis.call('EXISTS', KEYS[key + 3]) == 0
        and redis.call('SET', KEYS[key + 4], '1', 'NX', 'PX', wakeup_ms) then
      result[#result + 1] = environment.name
    end
  end
end
if newest > tonumber(redis.call('HGET', KEYS[4], 'newest:accepted') or '0') then
  redis.call('HSET', KEYS[4], 'newest:accepted', string.format('%d', newest))
end
if #result > 3 then
  redis.call('HINCRBY', KEYS[4], 'wakeup:work', #result - 3)
end
for _, receipt in ipairs(receipts) do
  -- What is no news may repeat an event that is: then the receipt is that one's. A receipt that tells of a death gives
  -- way: a producer that reports again begins it anew (append.lua), so what comes after a death was redriven.
  local key, status = KEYS[6] .. receipt[1], receipt[2]
  if status == 'accepted' then
    redis.call('SET', key, status .. '\n' .. now, 'PX', waiting_ms)
  else
    local value = redis.call('GET', key) or 'queued'
    local before = string.match(value, '^%l*')
    if before == 'queued' or before == 'dead' or status == 'superseded' then
      redis.call('SET', key, status .. '\n' .. now .. receipt[3], 'PX', done_ms)
    elseif string.sub(value, -9) == '\nrepeated' then
      redis.call('SET', key, string.sub(value, 1, -10), 'PX', done_ms)
    end
  end
end
return result
