"""A JSON response, with notes on what was repaired in the request in a header."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence

import msgspec
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send


def reply(body: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(body), status, headers, "application/json")


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
