-- Add events to the inbox, all or none, unless enough waits already or Redis has little memory left.
-- Applied twice (a retry whose answer was lost) it adds once: the call leaves its mark for a while.
-- Memory is counted as Redis counts it against maxmemory, at this very moment. Where the user may not INFO, or
-- there is no maxmemory, there is no watermark.
-- KEYS  inbox, counts, the call's mark, for a resync `internal`, then the receipts of the events that ask for one
-- ARGV  max_backlog, watermark (part of maxmemory), milliseconds to keep the mark, and a receipt while it waits,
--       1 for a resync, whose entries are noted as internal, else 0,
--       then for each event: its number of fields and values, then these
-- ->    number of events added; or an error QUEUEFULL or MEMORYFULL, counted as far as Redis still writes
local added = redis.call('GET', KEYS[3])
if added then
  return tonumber(added)
end
local FIRST = 6 -- argument of the first event
local is_internal = ARGV[5] == '1'
local function refuse(reason, message)
  local events, i = 0, FIRST
  while ARGV[i] do
    events = events + 1
    i = i + ARGV[i] + 1
  end
  redis.pcall('HINCRBY', KEYS[2], 'refused:' .. reason, events)
  return redis.error_reply(message)
end
local waiting = redis.call('XLEN', KEYS[1]) + tonumber(redis.call('HGET', KEYS[2], 'outbox') or '0')
if waiting >= tonumber(ARGV[1]) then
  return refuse('queue_full', 'QUEUEFULL ' .. waiting .. ' events wait')
end
local memory = redis.pcall('INFO', 'memory')
if type(memory) == 'string' then
  local function bytes_of(name)  -- a plain search: patterns over the whole text cost more than all the rest
    local _, last = string.find(memory, '\n' .. name .. ':', 1, true)
    return last and tonumber(string.match(memory, '^%d+', last + 1)) or 0
  end
  local most = bytes_of('maxmemory')
  if most > 0 then
    local used = bytes_of('used_memory') - bytes_of('mem_not_counted_for_evict')
    if used > tonumber(ARGV[2]) * most then
      return refuse('memory', string.format('MEMORYFULL %.0f of %.0f bytes are used', used, most))
    end
  end
end
local n, i = 0, FIRST
while ARGV[i] do
  local fields = tonumber(ARGV[i])
  local id = redis.call('XADD', KEYS[1], '*', unpack(ARGV, i + 1, i + fields))
  if is_internal then
    redis.call('HSET', KEYS[4], id, '1')
  end
  n = n + 1
  i = i + fields + 1
end
redis.call('SET', KEYS[3], n, 'PX', ARGV[3])
local first_receipt = is_internal and 5 or 4
if #KEYS >= first_receipt then
  local clock = redis.call('TIME')
  local queued = 'queued\n' .. clock[1] * 1000 + math.floor(clock[2] / 1000)
  for key = first_receipt, #KEYS do
    -- An event that is reported again while it is on its way is a duplicate: its receipt stands. So does that of one
    -- that was delivered, but what becomes of the repeat is known only when it is taken in (commit_intake.lua).
    local receipt = redis.call('GET', KEYS[key]) or ''
    local status = string.match(receipt, '^%l*')
    if status == 'delivered' then
      if string.sub(receipt, -9) ~= '\nrepeated' then
        redis.call('SET', KEYS[key], receipt .. '\nrepeated', 'PX', ARGV[4])
      end
    elseif status ~= 'accepted' then
      redis.call('SET', KEYS[key], queued, 'PX', ARGV[4])
    end
  end
end
return n
