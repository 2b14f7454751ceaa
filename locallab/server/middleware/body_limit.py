"""Limits of request bodies, enforced while they are read: a declared length may be missing or false.

One body has a limit; so have the large bodies together that one address has begun to send and not ended.
"""

from __future__ import annotations

import collections
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from locallab.server.connections import group

AT_ONCE = 16
"""Bodies of full size that one address may be sending: each of its many connections could hold one for minutes."""

SMALL = 256 << 10
"""Bytes of a body up to which it does not count for that."""


class BodyLimit:
    """Raise HTTPException inside the app, which answers in its dialect: 413 when it reads a body of more than `mib` MiB, 503
    when the address of its client is sending AT_ONCE times as much in unfinished bodies. `more` returns the bytes that are
    allowed besides at the moment; it is asked only about bodies that need them."""

    def __init__(self, app: ASGIApp, mib: int, more: Callable[[], int] = lambda: 0) -> None:
        self._app = app
        self._limit = mib << 20
        self._more = more
        self._unfinished: collections.Counter[str] = collections.Counter()
        reason = "this address is sending too many large request bodies at once; try again later"
        self._crowded = HTTPException(503, reason, {"connection": "close", "retry-after": "2"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "")
        address = group((scope.get("client") or ("",))[0])
        size = 0
        held = 0
        limit = self._limit

        def hold(count: int) -> None:
            nonlocal held
            self._unfinished[address] += count - held
            held = count
            if not self._unfinished[address]:
                del self._unfinished[address]

        def check(count: int) -> None:
            nonlocal limit
            if count > limit == self._limit:
                limit += self._more()
            if count > limit:  # the rest is thrown away for some seconds: a proxy that still sends would get no answer
                raise HTTPException(413, f"the request body is larger than {limit >> 20} MiB")

        async def limited() -> Message:
            nonlocal size
            if declared.isdecimal():
                check(int(declared))
            message = await receive()
            size += len(message.get("body", b""))
            check(size)
            hold(size if size > SMALL and message.get("more_body") else 0)
            if held and self._unfinished[address] > AT_ONCE * limit:
                raise self._crowded
            return message

        try:
            await self._app(scope, limited, send)
        finally:
            hold(0)
