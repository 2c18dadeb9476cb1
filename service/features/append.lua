-- Append records to a sequence, each event once; the caller's checksums make records opaque here.
-- KEYS[1]  the sequence: an 8-byte header, then records of one size
-- ARGV     header, bytes a record, most records to keep, time to live (ms), then the records;
--          bytes 5 to 12 of a record are its event id
-- Returns  how many records were new. A sequence of another header starts over; a torn tail goes.
local header, size = ARGV[1], tonumber(ARGV[2])
local most, ttl = tonumber(ARGV[3]), ARGV[4]

local value = redis.call('GET', KEYS[1])
if not value or string.sub(value, 1, 8) ~= header then
  value = header
end
value = string.sub(value, 1, 8 + math.floor((#value - 8) / size) * size)

local function holds(id)
  local at = string.find(value, id, 9, true)
  while at and (at - 13) % size ~= 0 do
    at = string.find(value, id, at + 1, true)
  end
  return at
end

local new = 0
for i = 5, #ARGV do
  if not holds(string.sub(ARGV[i], 5, 12)) then
    value = value .. ARGV[i]
    new = new + 1
  end
end
local excess = #value - 8 - most * size
if excess > 0 then
  value = header .. string.sub(value, 9 + excess)
end
redis.call('SET', KEYS[1], value, 'PX', ttl)
return new
