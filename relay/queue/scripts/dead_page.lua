-- A page of dead letters, each with its fields as they lie there, in order and even if a name comes twice.
-- Ends with the letter with which it reaches its bytes; of a letter that is larger than that, long values are cut.
-- Changes nothing.
-- KEYS  dead
-- ARGV  XRANGE or XREVRANGE, where to begin, where to end, letters at most, bytes of the page, bytes that are kept of a
--       value of a letter larger than the page, and how many fields and values of it
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
        -- What was appended at its death, at the end, is short, and says why it died.
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
