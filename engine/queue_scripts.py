"""What ``engine.arq_queue`` does inside Redis, each in one step and by Redis's own clock.

KEYS are the queue (a sorted set of job ids by the time at which they are due, in ms) and its bell (a list).
``arq:job:<job id>`` holds a job's text from its enqueuing to its claim.
"""

from __future__ import annotations

_NOW = "local t = redis.call('TIME') local now = t[1] * 1000 + math.floor(t[2] / 1000)\n"
#: A bell of the wrong type must not undo what was done before it; who waits at it finds that out and mends it.
_RING = "redis.pcall('LPUSH', KEYS[2], '1') redis.pcall('LTRIM', KEYS[2], 0, 7)\n"

#: ARGV: life of a job's text in ms, then job id, text and urgency in ms of each. The more urgent of two counts.
ENQUEUE = f"""{_NOW}
local more = false
for i = 2, #ARGV, 3 do
  local job, score = ARGV[i], now - tonumber(ARGV[i + 2])
  redis.call('SET', 'arq:job:' .. job, ARGV[i + 1], 'PX', ARGV[1])
  local old = redis.call('ZSCORE', KEYS[1], job)
  if not old then more = true end
  -- One that is due later is held by somebody, who looks at its end whether a text has come.
  if not old or (tonumber(old) <= now and score < tonumber(old)) then
    redis.call('ZADD', KEYS[1], string.format('%.0f', score), job)
  end
end
if more then {_RING} end
"""

#: ARGV: how many at most, and for how many ms they are held. Returns job id, text or nil, age in ms, and score of each.
CLAIM = f"""{_NOW}
local most = tonumber(ARGV[1])
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'WITHSCORES', 'LIMIT', 0, most + 1)
local claimed = {{}}
for i = 1, math.min(#due, 2 * most), 2 do
  local job = due[i]
  local text = redis.pcall('GET', 'arq:job:' .. job)
  redis.call('DEL', 'arq:job:' .. job)
  if type(text) == 'table' then text = 'of another type' end
  redis.call('ZADD', KEYS[1], string.format('%.0f', now + tonumber(ARGV[2])), job)
  local age = math.max(0, math.min(now - tonumber(due[i + 1]), 864e5))
  claimed[#claimed + 1] = {{job, text, math.floor(age), due[i + 1]}}
end
if #due > 2 * most then {_RING} end
return claimed
"""

#: ARGV: the job ids that are done. One whose text has come anew since its claim is due again.
FINISH = f"""{_NOW}
local more = false
for i = 1, #ARGV do
  if redis.call('EXISTS', 'arq:job:' .. ARGV[i]) == 1 then
    redis.call('ZADD', KEYS[1], string.format('%.0f', now), ARGV[i])
    more = true
  else
    redis.call('ZREM', KEYS[1], ARGV[i])
  end
end
if more then {_RING} end
"""

#: ARGV: life of a job's text in ms, then job id, text and score of each claimed one to give back.
RELEASE = f"""
for i = 2, #ARGV, 3 do
  if ARGV[i + 1] ~= '' then redis.call('SET', 'arq:job:' .. ARGV[i], ARGV[i + 1], 'PX', ARGV[1], 'NX') end
  redis.call('ZADD', KEYS[1], ARGV[i + 2], ARGV[i])
end
{_RING}
"""
