-- Add what a run observed of a destination: successes and failures since its last report (failures after the last
-- success), and by how much the window is to grow, or -1 to halve it.
-- ->  the destination's health
call('HDEL', health_key, '') -- frees nothing, but at maxmemory a script may write once it began with a delete
if successes ~= '0' then
  call('HINCRBY', health_key, 'successes', successes)
  call('HSET', health_key, 'failures', failures)
elseif failures ~= '0' then
  call('HINCRBY', health_key, 'failures', failures)
end
local change, most = tonumber(window_change), tonumber(max_window)
if change ~= 0 then
  local now = now_ms()
  local window = math.min(most, tonumber(call('HGET', health_key, 'window') or most))
  local shrunk = tonumber(call('HGET', health_key, 'shrunk') or '0')
  if change > 0 then
    call('HSET', health_key, 'window', math.min(most, window + change))
  elseif now - shrunk >= tonumber(shrink_gap_ms) or shrunk > now then -- one wave of failures halves it once
    call('HSET', health_key, 'window', math.max(1, math.floor(window / 2)), 'shrunk', now)
  end
end
return read_health(health_key)
