"""A process for test_runner that serves slow streams.

Arguments: seconds of grace, and whether it "heeds" or "ignores" the end of its lifespan, or has a "broken" one.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from locallab.server import listener, runner
from locallab.settings import ServerSettings

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class SlowApp:
    """GET /<n> streams n numbers, one in 50 ms, then "end". When it heeds its lifespan, "cancelled" ends a stream early."""

    def __init__(self, heeds: bool) -> None:
        self.heeds = heeds
        self.closing = asyncio.Event()

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        await (self.lifespan(receive, send) if scope["type"] == "lifespan" else self.stream(scope, receive, send))

    async def lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        if sys.argv[2] == "broken":
            await send({"type": "lifespan.startup.failed", "message": "no model"})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        print("lifespan ended", flush=True)
        if self.heeds:
            self.closing.set()
        await send({"type": "lifespan.shutdown.complete"})

    async def stream(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        async def write(text: str, more: bool) -> None:
            await send({"type": "http.response.body", "body": text.encode(), "more_body": more})

        gone = asyncio.create_task(disconnect(receive))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        for number in range(int(scope["path"][1:])):
            await write(f"{number} ", True)
            await asyncio.sleep(0.05)
            if gone.done() or self.closing.is_set():
                break
        await write("cancelled" if self.closing.is_set() else "end", False)


async def disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def main() -> int:
    settings = ServerSettings(port=0, grace=float(sys.argv[1]))
    sock = listener.bind(settings.host, settings.port)
    port = sock.getsockname()[1]
    return runner.serve(SlowApp(sys.argv[2] == "heeds"), sock, settings, lambda: print("ready", port, flush=True))


if __name__ == "__main__":
    sys.exit(main())
