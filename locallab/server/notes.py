"""What was mended in a request or left out of it, told in a header of the answer."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = b"x-locallab-notes"


def noted(response: ASGIApp, notes: Sequence[str]) -> ASGIApp:
    """The response, with the notes in its header if there are any."""
    if not notes:
        return response
    value = "; ".join(notes).encode("ascii", "backslashreplace")

    async def with_notes(scope: Scope, receive: Receive, send: Send) -> None:
        def relay(message: Message) -> Awaitable[None]:  # no coroutine of its own: every token passes here
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (HEADER, value)]
            return send(message)

        await response(scope, receive, relay)

    return with_notes
