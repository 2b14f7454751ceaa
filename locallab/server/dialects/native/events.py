"""LocalLab's stream of what the server does: /api/v1/events."""

from __future__ import annotations

import asyncio
import collections
import contextlib
from collections.abc import AsyncIterator, Iterator

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import Receive, Scope, Send

from locallab.engine import Caller
from locallab.errors import TooManyWatchers
from locallab.keys import Keyring
from locallab.server.connections import STOPPING
from locallab.server.dialects.native.activity import Activity, Sampler
from locallab.server.endpoint import Endpoint
from locallab.server.roles import is_admin
from locallab.server.streaming import EVENTS, ByteStream

MOST = 64
"""Clients that may watch at once."""
MOST_EACH = 8
"""Those of them with one key, or from one address without."""
CHECK = 5.0
"""Seconds without news after which the key is checked again, as it is ahead of each message."""
PING = b": ping\n\n"


class WatchStream(ByteStream):
    """A stream of activity, counted as one watcher while it is sent."""

    def __init__(self, watch: contextlib.AbstractContextManager[AsyncIterator[bytes]]) -> None:
        super().__init__(_nothing(), ping_message_factory=lambda: PING)
        self._watch = watch

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "HEAD":
            await super().__call__(scope, receive, send)
            return
        with self._watch as self.body_iterator:
            await super().__call__(scope, receive, send)


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield b""


class Events:
    """The route."""

    def __init__(self, sampler: Sampler, keyring: Keyring) -> None:
        self.sampler = sampler
        self._keyring = keyring
        self._watchers: collections.Counter[Caller] = collections.Counter()

    def routes(self) -> list[BaseRoute]:
        answer = {"answer": Activity, "media_type": EVENTS}
        return [Endpoint("/api/v1/events", self.events, tag="system", errors=(503,), **answer)]  # type: ignore[arg-type]

    async def events(self, request: Request) -> Response:
        """Watch what the server does, as server-sent events.

        Each event has the whole state in its `data`, so that a client may miss any. At most four come in a second, and only
        when something has changed; a comment every 15 seconds keeps the connection open. The requests of all keys are shown
        to keys with the role admin, others see their own. At most 64 clients may watch, 8 of them with one key. One that reads
        slowly gets the latest state when it does. The stream ends with the server, and once the key is not valid any more.
        """
        caller: Caller = request.state.caller
        if self._watchers[caller] >= MOST_EACH:
            raise TooManyWatchers(MOST_EACH, each=True)
        if self._watchers.total() >= MOST:
            raise TooManyWatchers(MOST, each=False)
        return WatchStream(self._watching(request))

    @contextlib.contextmanager
    def _watching(self, request: Request) -> Iterator[AsyncIterator[bytes]]:
        caller: Caller = request.state.caller
        self._watchers[caller] += 1
        self.sampler.start(request.scope["state"].get(STOPPING) or asyncio.Event())
        try:
            yield self._messages(request)
        finally:
            self._watchers[caller] -= 1
            if not self._watchers[caller]:
                del self._watchers[caller]
            if not self._watchers:
                self.sampler.stop()

    async def _messages(self, request: Request) -> AsyncIterator[bytes]:
        seen, whose = None, None if is_admin(request) else request.state.caller.id
        while await self.sampler.after(seen, CHECK) and self._allowed(request):
            snapshot = self.sampler.current
            if snapshot is not None and snapshot is not seen:
                seen = snapshot
                yield snapshot.encoded(whose)

    def _allowed(self, request: Request) -> bool:
        """Return whether the request's key may still do what it could at first."""
        key = request.state.key
        return not self._keyring.required or (key is not None and self._keyring.has(key))
