"""The responses that routes keep and find: in memory, and with `--redis-url` in the Redis that several servers share."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

from locallab import redis_link
from locallab.errors import UnknownResponse
from locallab.server.dialects.responses.redis_store import RedisStore
from locallab.server.dialects.responses.store import MOST, Kept, Key, Owner, ResponseStore, conversation, inputs
from locallab.settings import ServerSettings

MOST_UNSENT = 10 * MOST
"""Changes remembered while Redis is gone; older ones are forgotten."""

T = TypeVar("T")


class KeptResponses:
    """Used in the event loop, which it never blocks.

    What this server keeps is in its memory, too. While Redis is gone, that is what it finds, no request waits for Redis, and
    what is kept and deleted meanwhile is carried over to Redis when it is back.
    """

    def __init__(self, memory: ResponseStore, shared: RedisStore | None = None) -> None:
        self._memory = memory
        self._shared = shared
        self._outage = redis_link.Outage("responses", "this server keeps and finds its own responses only")
        self._unsent: dict[Key, object] = {}  # kept or deleted here, and not yet in Redis: the last change of each
        self._sending: set[asyncio.Future[Any]] = set()
        self._return: asyncio.Task[None] | None = None

    @classmethod
    def of(cls, settings: ServerSettings) -> KeptResponses:
        """Raises ConfigError for an unusable address of Redis."""
        url = settings.redis_url
        return cls(ResponseStore(), RedisStore(redis_link.connect_async(url)) if url else None)

    async def put(self, owner: Owner, body: dict[str, Any], request_items: list[Any]) -> None:
        """Keep a response; the least recently used ones make room. It is kept here even if this is cancelled."""
        key, kept = (owner, body["id"]), Kept.of(body, request_items)
        self._memory.put(*key, kept)
        self._change(key)
        await self._send(key, lambda shared: shared.put(*key, kept))

    async def get(self, owner: Owner, response_id: str) -> bytes:
        """Return the response as JSON. Raises UnknownResponse."""
        for kept in await self._chain(owner, response_id, 1):
            return kept.body
        raise UnknownResponse(response_id)

    async def remove(self, owner: Owner, response_id: str) -> None:
        """Raises UnknownResponse."""
        key = (owner, response_id)
        unsent = key in self._unsent
        here = self._memory.remove(*key)
        if here:
            self._change(key)
        there = await self._send(key, lambda shared: shared.remove(*key))
        if not (there or (here and (unsent or there is None))):
            raise UnknownResponse(response_id)

    async def conversation(self, owner: Owner, response_id: str) -> list[Any]:
        """Return all items up to the end of this response, oldest first, those of requests and of answers.

        Raises UnknownResponse for the first one missing.
        """
        return conversation(await self._chain(owner, response_id), response_id)

    async def inputs(self, owner: Owner, response_id: str) -> list[Any]:
        """Return the items that this response had as its input, oldest first, as far as they are still kept.

        Raises UnknownResponse.
        """
        return inputs(await self._chain(owner, response_id), response_id)

    async def items(self, owner: Owner, ids: Iterable[str]) -> dict[str, Any]:
        """Return those of the items that the owner's responses have, by their ids."""
        wanted = list(ids)
        found = await self._ask(lambda shared: shared.items(owner, wanted)) if wanted else {}
        if found is None or self._unsent:
            found = {**self._memory.items(owner, wanted), **(found or {})}
        return found

    async def close(self) -> None:
        """Finish what is being sent to Redis, and close the connections to it."""
        if self._return is not None:
            self._return.cancel()
        await asyncio.gather(*self._sending, *filter(None, [self._return]), return_exceptions=True)
        if self._shared is not None:
            await self._shared.close()

    async def _chain(self, owner: Owner, response_id: str, most: int = MOST) -> list[Kept]:
        """Return a response and those it continued, the newest first; some may be in Redis, and others still here alone."""
        found: list[Kept] = []
        next_id: str | None = response_id
        while next_id is not None and len(found) < most:
            more = await self._links(owner, next_id, most - len(found))
            if not more:
                break
            found += more
            next_id = found[-1].previous
        return found

    async def _links(self, owner: Owner, response_id: str, most: int) -> list[Kept]:
        found = await self._ask(lambda shared: shared.chain(owner, response_id, most))
        if found is None:
            return self._memory.chain(owner, response_id, most)
        if not found and (owner, response_id) in self._unsent:
            return self._memory.chain(owner, response_id, 1)
        return found

    async def _ask(self, call: Callable[[RedisStore], Awaitable[T]]) -> T | None:
        """Return what Redis answers; None without Redis, and while it is gone."""
        if self._shared is None or self._outage.lasts:
            return None
        try:
            return await asyncio.wait_for(call(self._shared), redis_link.PATIENCE)
        except redis_link.failures() as error:
            self._outage.failed(error)
            self._return = self._return or asyncio.create_task(self._await_return(self._shared))
            return None

    def _change(self, key: Key) -> None:
        """Remember that Redis does not know yet what is kept here of `key`."""
        if self._shared is not None:
            self._unsent.pop(key, None)
            self._unsent[key] = object()
            while len(self._unsent) > MOST_UNSENT:
                del self._unsent[next(iter(self._unsent))]

    async def _send(self, key: Key, call: Callable[[RedisStore], Awaitable[T]]) -> T | None:
        """Change Redis, even if the request is cancelled. Return None without Redis, and while it is gone: it is sent later."""
        if self._shared is None:
            return None
        sending = asyncio.ensure_future(self._sent(key, self._unsent.get(key), call))
        self._sending.add(sending)
        sending.add_done_callback(self._sending.discard)
        return await asyncio.shield(sending)

    async def _sent(self, key: Key, change: object, call: Callable[[RedisStore], Awaitable[T]]) -> T | None:
        done = await self._ask(call)
        if done is not None and self._unsent.get(key) is change:
            self._unsent.pop(key, None)
        return done

    async def _await_return(self, shared: RedisStore) -> None:
        while self._outage.lasts:
            await asyncio.sleep(redis_link.PAUSE)
            try:
                await self._carry_over(shared)
            except redis_link.failures() as error:
                self._outage.failed(error)
            else:
                self._outage.over()
        self._return = None

    async def _carry_over(self, shared: RedisStore) -> None:
        """Send what has changed to Redis. One change that it refuses though it answers is given up."""
        await asyncio.wait_for(shared.ping(), redis_link.PATIENCE)
        while self._unsent:
            key, change = next(iter(self._unsent.items()))
            kept = self._memory.find(key)
            try:
                sending = shared.put(*key, kept) if kept else shared.remove(*key)
                await asyncio.wait_for(sending, redis_link.PATIENCE)
            finally:
                if self._unsent.get(key) is change:
                    del self._unsent[key]
