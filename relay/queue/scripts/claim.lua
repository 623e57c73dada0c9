-- Renew the lease of an outbox, and claim the retries whose time has come: one entry of each instance. A claimed
-- retry is due again after one lease, so that it comes back by itself if the run dies.
-- While the destination is throttled or unavailable, or the environment paused, nothing is claimed.
-- ->    nil when the lease is lost; else {now in ms, the destination's health,
--       1 if the environment is paused, 1 if the destination lets nothing be sent, 1 if any instance is deferred,
--       retries as {trials, entry, for each superseded entry its id and, if it has a receipt, its event's id, else ''}}
local MAX_THROTTLE_MS = 600000 -- a longer throttle was set by a clock that was set back since
local MAX_DELETED = 100        -- deferred entries of one instance without a stream entry that are dropped at once
local MAX_SUPERSEDED = 100     -- entries of one instance that one retry supersedes
local MAX_READ = 100           -- entries after which no other instance is looked at

if not holds_lease(lease_key, run_key, token) then
  return nil
end
renew_lease(lease_key, token, lease_ms)
local now = now_ms()
local health = read_health(health_key)
local paused = call('HEXISTS', paused_key, environment)
local closed_until = tonumber(health[1]) or 0
local is_closed = closed_until > now and closed_until <= now + MAX_THROTTLE_MS
local result = {now, health, paused, is_closed and 1 or 0, call('EXISTS', due_key)}
if paused == 1 or is_closed or result[5] == 0 or wanted == '0' then
  return result
end

local function deferred_of(instance, count)
  return call('ZRANGEBYLEX', deferred_key, '[' .. instance .. '\n', '(' .. instance .. '\011', 'LIMIT', 0, count)
end

local entries_read = 0
local function entry_of(member)
  entries_read = entries_read + 1
  local ms, n = string.match(member, '\n0*(%d+)%-0*(%d+)$')
  return call('XRANGE', outbox_key, ms .. '-' .. n, ms .. '-' .. n)[1]
end

-- Return the first deferred entry of an instance; those that an operator deleted from the stream are dropped.
local function first_of(instance)
  for _ = 1, MAX_DELETED do
    local member = deferred_of(instance, 1)[1]
    if not member then
      call('ZREM', due_key, instance)
      call('HDEL', attempts_key, instance)
      return nil
    end
    local entry = entry_of(member)
    if entry then
      return entry
    end
    call('ZREM', deferred_key, member)
    call('HDEL', attempts_key, instance)
  end
end

local function receipt_of(fields)
  local event_id, has_receipt = '', false
  for i = 1, #fields, 2 do
    event_id = fields[i] == 'id' and fields[i + 1] or event_id
    has_receipt = has_receipt or fields[i] == 'receipt'
  end
  return has_receipt and event_id or ''
end

-- Return the latest deferred entry of an instance; append the ids and receipts of those before it to its retry.
local function supersede(retry, instance, first)
  local latest = first
  local members = deferred_of(instance, MAX_SUPERSEDED)
  for i = 2, #members do
    local entry = entry_of(members[i])
    if entry then
      retry[#retry + 1] = latest[1]
      retry[#retry + 1] = receipt_of(latest[2])
      latest = entry
    end
  end
  return latest
end

-- A retry that is later than any pause can be was scheduled before the clock was set back.
for _, instance in ipairs(call('ZRANGEBYSCORE', due_key, now + longest_pause_ms, '+inf', 'LIMIT', 0, wanted)) do
  call('ZADD', due_key, now, instance)
end
for _, instance in ipairs(call('ZRANGEBYSCORE', due_key, '-inf', now, 'LIMIT', 0, wanted)) do
  local entry = entries_read < MAX_READ and first_of(instance)
  if entry then
    call('ZADD', due_key, now + lease_ms, instance)
    local retry = {'', entry}
    if latest_only == '1' then
      retry[2] = supersede(retry, instance, entry)
    end
    if #retry == 2 then -- else the latest was never tried
      retry[1] = call('HGET', attempts_key, instance) or ''
    end
    result[#result + 1] = retry
  end
end
return result
