-- Return the length and the first entry of outboxes. Changes nothing.
-- KEYS  outboxes
-- ->    of each: entries, first id or ''
local result = {}
for _, outbox in ipairs(KEYS) do
  local first = redis.call('XRANGE', outbox, '-', '+', 'COUNT', 1)[1]
  result[#result + 1] = redis.call('XLEN', outbox)
  result[#result + 1] = first and first[1] or ''
end
return result
