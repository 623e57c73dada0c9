-- Set fields of a destination's health, unless another worker changed one since they were read: compare and set.
-- A field's value '' is one that is missing.
-- ->  1 if they are set, 0 if they are to be read again
call('HDEL', health_key, '') -- frees nothing, but at maxmemory a script may write once it began with a delete
for at = expected_first, expected_last, EXPECTED_SIZE do
  if (call('HGET', health_key, ARGV[at + EXPECTED_FIELD]) or '') ~= ARGV[at + EXPECTED_VALUE] then
    return 0
  end
end
for at = wanted_first, wanted_last, WANTED_SIZE do
  if ARGV[at + WANTED_VALUE] == '' then
    call('HDEL', health_key, ARGV[at + WANTED_FIELD])
  else
    call('HSET', health_key, ARGV[at + WANTED_FIELD], ARGV[at + WANTED_VALUE])
  end
end
if unhealthy_ms ~= '0' then
  call('HINCRBY', health_key, 'unhealthy_ms:' .. state, unhealthy_ms)
end
return 1
