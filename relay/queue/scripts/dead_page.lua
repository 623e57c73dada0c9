-- Return a page of dead letters, each with all its fields in order, also repeated ones. Changes nothing.
-- The page ends with the letter that reaches its size. Of a letter larger than a page, long values are cut.
-- KEYS  dead
-- ARGV  XRANGE or XREVRANGE, first id, last id, maximum number of letters, bytes of the page; of a letter larger than
--       the page: bytes kept of each value, and number of fields and values kept at each end
-- ->    letters: {id, {field, value, ...}}...
local most, page_bytes, kept, kept_parts = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local start, bytes, step = ARGV[2], 0, 1
local result = {}
while #result < most and bytes < page_bytes do
  local wanted = math.min(step, most - #result)
  local letters = redis.call(ARGV[1], KEYS[1], start, ARGV[3], 'COUNT', wanted)
  for _, letter in ipairs(letters) do
    if bytes >= page_bytes then
      return result
    end
    local size, parts = 0, letter[2]
    for i = 1, #parts do
      size = size + #parts[i]
    end
    if size > page_bytes then
      local cut = {}
      for i = 1, #parts do
        -- The fields at the end were appended by the scripts: they are short and contain the reason.
        if i <= kept_parts or i > #parts - kept_parts then
          cut[#cut + 1] = string.sub(parts[i], 1, kept)
        end
      end
      letter[2] = cut
      size = page_bytes
    end
    bytes = bytes + size
    result[#result + 1] = letter
  end
  if #letters < wanted then
    return result
  end
  start = '(' .. letters[#letters][1]
  step = bytes * 8 < page_bytes and step * 4 or step
end
return result
