"""Work on texts off the event loop: long ones in threads, where short ones do not wait for them."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from starlette.requests import Request
from starlette.types import Receive

from locallab.server.inference.generation import unless_gone

INLINE = 4096
"""Characters up to which a text is tokenized in the event loop: a millisecond."""
LONG = 1 << 18
"""Characters from which a text takes so long that it has threads of its own."""
JSON = 16
"""Characters of JSON that are read in the time in which one character is tokenized."""
ITEM = 16
"""Characters that an item of a list, or a message, counts as besides its text."""

RECEIVE: contextvars.ContextVar[Receive | None] = contextvars.ContextVar("receive", default=None)
"""What tells that the client of the current request leaves, once its body has been read."""

Stopped = Callable[[], bool]
"""Says whether nobody waits for the work any more."""

Result = TypeVar("Result")

_SHORT_ONES = ThreadPoolExecutor(2, "texts")
_LONG_ONES = ThreadPoolExecutor(2, "long texts")


async def aside(length: int, work: Callable[[Stopped], Result]) -> Result:
    """Call `work`, which takes its time with `length` characters: in a thread unless they are few.

    Raises ClientGone when the client leaves first; `work` is then told to stop, as when the caller is cancelled.
    """
    if length <= INLINE:
        return work(lambda: False)
    stop = threading.Event()

    async def wait() -> Result:
        pool = _SHORT_ONES if length < LONG else _LONG_ONES
        return await asyncio.get_running_loop().run_in_executor(pool, work, stop.is_set)

    receive = RECEIVE.get()
    try:
        return await (unless_gone(wait(), receive) if receive else wait())
    finally:
        stop.set()


async def read_aside(request: Request, read: Callable[[], Result]) -> Result:
    """Call `read`, which makes something of the request's body: in a thread if the body is long. Raises as `aside`."""
    return await aside(len(await request.body()) // JSON, lambda stopped: read())
