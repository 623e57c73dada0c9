-- Make a dead letter of an inbox entry, with the fields that are given. Fenced by the lease, and harmless when applied
-- twice. A key after the declared ones is that of the receipt, if the entry asks for one.
-- Returns 1; 0 if the entry was gone before; -1 if the lease is lost.
if not holds_lease(lease_key, run_key, token) then
  return -1
end
local deleted = call('XDEL', inbox_key, entry_id) -- first: at maxmemory a script may write once it frees memory
call('HDEL', internal_key, entry_id)
renew_lease(lease_key, token, lease_ms)
if deleted == 0 then
  return 0
end
call('XADD', dead_key, '*', unpack(ARGV, fields_first, fields_last))
call('HINCRBY', counters_key, 'dead', 1)
call('HINCRBY', counters_key, 'dead:' .. reason, 1)
if call('HEXISTS', counters_key, 'taken') == 0 then
  call('HSETNX', dataset_key, 'internal_after', '0-0') -- as commit_intake.lua does in a new data set
end
call('HINCRBY', counters_key, 'taken', 1)
local receipt_key = KEYS[KEYS_DECLARED + 1]
if receipt_key then
  local before = string.match(call('GET', receipt_key) or 'queued', '^%l*')
  if before == 'queued' or before == 'dead' then
    call('SET', receipt_key, 'dead\n' .. now_ms() .. '\n' .. reason .. '\n' .. detail, 'PX', receipt_ms)
  end
end
return 1
