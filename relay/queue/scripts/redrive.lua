-- Move dead letters back to the inbox, as many as fit, each with the given fields. Atomic, fenced by the redrive's
-- lease, and harmless when applied twice: a dead letter that no longer exists is skipped.
-- Without letters it renews the lease; with 0 ms it releases it.
-- Each entry is noted as internal: intake ignores the field `redriven` of all other entries.
-- KEYS  lease, dead, inbox, counts, internal
-- ARGV  token, lease in ms, max_backlog, then for each letter: its id, number of fields and values, then these
-- ->    {0} if the lease is lost; else {1, letters moved, 1 if the inbox is full}
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return {0}
end
local room = tonumber(ARGV[3]) - redis.call('XLEN', KEYS[3])
             - tonumber(redis.call('HGET', KEYS[4], 'outbox') or '0')
local moved, full = 0, 0
if redis.call('XLEN', KEYS[3]) == 0 then
  redis.call('DEL', KEYS[5]) -- notes of entries that were trimmed or deleted manually
end
local at = 4
while ARGV[at] do
  local fields = tonumber(ARGV[at + 1])
  if moved >= room then
    full = 1
    break
  end
  -- Each letter begins with its delete: at maxmemory a script may write once it began with one.
  if redis.call('XDEL', KEYS[2], ARGV[at]) == 1 then
    local id = redis.call('XADD', KEYS[3], '*', unpack(ARGV, at + 2, at + 1 + fields))
    redis.call('HSET', KEYS[5], id, '1')
    moved = moved + 1
  end
  at = at + 2 + fields
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
if moved > 0 then
  redis.call('HINCRBY', KEYS[4], 'redriven', moved)
end
return {1, moved, full}
