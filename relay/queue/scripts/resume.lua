-- Resume environments; those with events in their outbox are due at once. The outboxes' keys follow the declared ones.
-- ->  for each: since when it was paused, in milliseconds, 0 if it was not
local now, result = now_ms(), {}
for i = 1, environments_n do
  local environment = ARGV[environments_first + i - 1]
  local since = call('HGET', paused_key, environment)
  if since and call('HDEL', paused_key, environment) == 1 and call('EXISTS', KEYS[KEYS_DECLARED + i]) == 1 then
    call('ZADD', schedule_key, 'LT', now, environment)
  end
  result[i] = tonumber(since or '0')
end
return result
