"""The keys that a client presents: in a header, or where a browser opens a WebSocket, which can set none."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import parse_qsl, unquote_plus

from starlette.types import ASGIApp, Receive, Scope, Send

QUERY = "api_key"
SUBPROTOCOL = "locallab.key."

_HEADERS = (b"authorization", b"x-api-key", b"api-key")


class Credentials:
    """Puts them into scope["state"]["presented"], and takes them out of a WebSocket's query and subprotocols.

    It stands before all others, and changes the server's own scope: what writes a path into a log must not find a key there.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            presented = from_headers(scope["headers"])
            if scope["type"] == "websocket":
                presented += _taken_out(scope)
            scope.setdefault("state", {})["presented"] = presented
        await self._app(scope, receive, send)


def from_headers(headers: Iterable[tuple[bytes, bytes]]) -> list[str]:
    """The keys in the headers, of which there may be several: clients send one that is empty beside one that counts."""
    found = []
    for name, value in headers:
        if name in _HEADERS:
            text = value.decode("latin-1").strip()
            if name == b"authorization":
                scheme, _, text = text.partition(" ")
                text = text.strip() if scheme.lower() == "bearer" else ""
            if text:
                found.append(text)
    return found


def _taken_out(scope: Scope) -> list[str]:
    query: bytes = scope.get("query_string", b"")
    found = [value for name, value in parse_qsl(query.decode("latin-1")) if name == QUERY]
    scope["query_string"] = b"&".join(pair for pair in query.split(b"&") if not _is_key(pair))
    offered: list[str] = scope.get("subprotocols", [])
    scope["subprotocols"] = [each for each in offered if not each.startswith(SUBPROTOCOL)]
    return found + [each.removeprefix(SUBPROTOCOL) for each in offered if each.startswith(SUBPROTOCOL)]


def _is_key(pair: bytes) -> bool:
    return unquote_plus(pair.partition(b"=")[0].decode("latin-1")) == QUERY
