"""Responses kept in Redis, by the rules of those in memory: the last used ones, within limits of number and bytes.

Each operation is one script, which Redis runs as a whole. `used` is a sorted set of all responses (owner/id) by their last
use, `sizes` a hash of their bytes and the total. Each response is a hash; each item a sorted set of the responses that have it.
What Redis itself has evicted is not found, and no longer counts once it is looked for.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import msgspec

from locallab.redis_link import PREFIX
from locallab.server.dialects.responses.store import MOST, MOST_BYTES, Kept, Owner, picked

if TYPE_CHECKING:
    from redis.asyncio import Redis

SLICE = 4 << 20

_KEYS = tuple(f"{PREFIX}:{name}" for name in ("responses", "responses:sizes", "response:", "response-item:"))

_COMMON = """
local used, sizes, RESPONSE, ITEM = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local owner = ARGV[1]
local call = redis.call

local function tick()
  local last = call('ZREVRANGE', used, 0, 0, 'WITHSCORES')
  return (tonumber(last[2]) or 0) + 1
end

local function drop(member)
  local owner, id = member:match('^([^/]*)/(.*)$')
  local ids = call('HGET', RESPONSE .. member, 'ids')
  for _, item in ipairs(ids and cjson.decode(ids) or {}) do
    call('ZREM', ITEM .. owner .. '/' .. item, id)
  end
  call('DEL', RESPONSE .. member)
  call('ZREM', used, member)
  call('HINCRBY', sizes, 'total', -(tonumber(call('HGET', sizes, member)) or 0))
  call('HDEL', sizes, member)
  if call('EXISTS', used) == 0 then call('DEL', sizes) end
end

local function known(id)
  local member = owner .. '/' .. id
  if call('EXISTS', RESPONSE .. member) == 1 then return true end
  if call('ZSCORE', used, member) then drop(member) end
  return false
end
"""

_PUT = """
local most, most_bytes, id, previous, request, body, ids = unpack(ARGV, 2)
local member, now = owner .. '/' .. id, tick()
if known(id) then drop(member) end
call('HSET', RESPONSE .. member, 'request', request, 'body', body, 'ids', ids)
if previous ~= '' then call('HSET', RESPONSE .. member, 'previous', previous) end
call('ZADD', used, now, member)
call('HSET', sizes, member, #request + #body)
call('HINCRBY', sizes, 'total', #request + #body)
for _, item in ipairs(cjson.decode(ids)) do
  call('ZADD', ITEM .. owner .. '/' .. item, now, id)
end
while call('ZCARD', used) > tonumber(most)
  or (tonumber(call('HGET', sizes, 'total')) or 0) > tonumber(most_bytes) do
  local oldest = call('ZRANGE', used, 0, 0)[1]
  if not oldest then break end
  drop(oldest)
end
"""

_CHAIN = """
local id, most, slice = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local found, bytes = {}, 0
while id and #found < most and bytes < slice and known(id) do
  local member = owner .. '/' .. id
  call('ZADD', used, tick(), member)
  local each = call('HMGET', RESPONSE .. member, 'previous', 'request', 'body')
  found[#found + 1], bytes, id = each, bytes + #each[2] + #each[3], each[1]
end
return found
"""

_REMOVE = """
local found = known(ARGV[2])
if found then drop(owner .. '/' .. ARGV[2]) end
return found and 1 or 0
"""

_ITEMS = """
local holders, bodies = {}, {}
for index = 2, #ARGV do
  local key, id = ITEM .. owner .. '/' .. ARGV[index], nil
  repeat
    id = call('ZREVRANGE', key, 0, 0)[1]
    local lost = id and not known(id)
    if lost then call('ZREM', key, id) end
  until not lost
  holders[#holders + 1] = id or false
  if id and not bodies[id] then
    bodies[id] = true
    bodies[#bodies + 1] = {id, call('HMGET', RESPONSE .. owner .. '/' .. id, 'request', 'body')}
  end
end
return {holders, bodies}
"""


class RedisStore:
    """The responses of all servers that share a Redis. Each method raises what `redis_link.failures` lists."""

    def __init__(self, client: Redis, most: int = MOST, most_bytes: int = MOST_BYTES) -> None:
        self._client = client
        self._most = most
        self._most_bytes = most_bytes
        scripts = (client.register_script(_COMMON + each) for each in (_PUT, _CHAIN, _REMOVE, _ITEMS))
        self._put, self._chain, self._remove, self._items = scripts

    async def ping(self) -> None:
        await self._client.ping()

    async def put(self, owner: Owner, response_id: str, kept: Kept) -> bool:
        """Keep a response; the least recently used ones make room. Return False for one that is too large by itself."""
        if kept.size > self._most_bytes:
            return False
        content = (response_id, kept.previous or "", kept.request, kept.body, msgspec.json.encode(kept.ids))
        await self._put(_KEYS, (_name(owner), self._most, self._most_bytes, *content))
        return True

    async def chain(self, owner: Owner, response_id: str, most: int = MOST) -> list[Kept]:
        """Return a response and those it continued, the newest first, up to the first one that is not kept, or `most`.

        The rest is left for another call when SLICE bytes are reached: no answer of Redis takes long.
        """
        found = await self._chain(_KEYS, (_name(owner), response_id, most, SLICE))
        return [Kept(previous.decode() if previous else None, request, body) for previous, request, body in found]

    async def remove(self, owner: Owner, response_id: str) -> bool:
        """Return whether it was kept."""
        return bool(await self._remove(_KEYS, (_name(owner), response_id)))

    async def items(self, owner: Owner, ids: Iterable[str]) -> dict[str, Any]:
        """Return those of the items that the owner's responses have, by their ids."""
        wanted = list(ids)
        holders, bodies = await self._items(_KEYS, (_name(owner), *wanted))
        found = {item_id: holder for item_id, holder in zip(wanted, holders, strict=True) if holder is not None}
        return picked(found, {holder: Kept(None, request, body) for holder, (request, body) in bodies})

    async def close(self) -> None:
        await self._client.aclose()


def _name(owner: Owner) -> str:
    return owner or "-"
