"""JSON responses, and response headers added to those of an app."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence

import msgspec
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from locallab.engine.request import CacheUse, MissReason

NOTES = b"x-locallab-notes"
CACHE = "x-locallab-cache"

STOPS: Mapping[MissReason, str] = {
    "end": "end",
    "first time": "first time",
    "diverged": "diverged at {}",
    "evicted": "evicted at {}",
    "no snapshot": "no snapshot before {}",
}
"""Each reason as a text, for the index of the token."""

MOST_NOTES, LONGEST_NOTE = 10, 200
"""Notes of one answer, and characters of each: clients take headers of a few kilobytes."""

RawHeaders = Sequence[tuple[bytes, bytes]]


def reply(body: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(body), status, headers, "application/json")


def cache_text(use: CacheUse) -> str:
    """Say what prompts got from the prefix cache, without any of their text."""
    return f"hit={use.hit}/{use.total}; tier={use.tier}; stop={STOPS[use.reason].format(use.at)}"


def cache_headers(use: CacheUse | None) -> dict[str, str]:
    return {CACHE: cache_text(use)} if use else {}


def adding_headers(send: Send, headers: RawHeaders) -> Send:
    """Return a `send` that adds the headers to an HTTP response."""

    def relay(message: Message) -> Awaitable[None]:  # not a coroutine: it runs for every token
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *headers]
        return send(message)

    return relay


def note_text(notes: Sequence[str]) -> str:
    """Return the notes as one line of ASCII."""
    shown = [note if len(note) <= LONGEST_NOTE else f"{note[:LONGEST_NOTE]}..." for note in dict.fromkeys(notes)]
    more = [f"and {len(shown) - MOST_NOTES} more"] if len(shown) > MOST_NOTES else []
    text = "; ".join(shown[:MOST_NOTES] + more).encode("ascii", "backslashreplace").decode()
    return "".join(letter if " " <= letter < "\x7f" else " " for letter in text)


def noted(response: ASGIApp, notes: Sequence[str]) -> ASGIApp:
    """Return the response with the notes, if any, in its header x-locallab-notes, ahead of those it has."""
    if not notes:
        return response
    value = note_text(notes).encode()

    async def with_notes(scope: Scope, receive: Receive, send: Send) -> None:
        def relay(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", ()))
                joined = b"; ".join([value, *(text for name, text in headers if name == NOTES)])
                message["headers"] = [*(each for each in headers if each[0] != NOTES), (NOTES, joined)]
            return send(message)

        await response(scope, receive, relay)

    return with_notes
