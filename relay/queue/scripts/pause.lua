-- Pause environments: nothing of them is sent until they are resumed, and their events keep queueing.
-- An environment that is paused already keeps its time.
-- ->  for each: 1 if it was not paused before, else 0; since when it is paused, in milliseconds
local now, result = now_ms(), {}
for at = environments_first, environments_last do
  local since = call('HGET', paused_key, ARGV[at])
  result[#result + 1] = since and 0 or 1
  result[#result + 1] = tonumber(since) or now
  -- Deleting a missing field frees nothing, but at maxmemory a script may write once it began with a delete.
  if not since and call('HDEL', paused_key, ARGV[at]) == 0 then
    call('HSET', paused_key, ARGV[at], now)
  end
end
return result
