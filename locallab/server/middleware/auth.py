"""Credentials that a client presents, and the check of them."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
from urllib.parse import parse_qsl, unquote_plus

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from locallab.errors import Unauthorized
from locallab.keys import Key, Keyring

SUBPROTOCOL = "locallab"
"""What a browser offers beside the subprotocol that carries its key: it wants one of those it offered to be chosen."""

MISSING = "an API key is required: send it as Authorization: Bearer KEY, or in the header x-api-key or api-key"
WRONG = "the API key is not valid"


class Auth:
    """Puts the client's key, or None, into scope["state"]["key"]; raises Unauthorized where one is required and not there.

    A WebSocket whose key is revoked looks to the app as if its client had gone.
    """

    def __init__(self, app: ASGIApp, keyring: Keyring) -> None:
        self._app = app
        self._keyring = keyring

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        presented = scope["state"]["presented"]
        scope["state"]["key"] = key = self._keyring.find(presented)
        if key is None and self._keyring.required and not _is_free(scope):
            raise Unauthorized(WRONG if presented else MISSING)
        if scope["type"] == "websocket":
            receive, send = self._watched(receive, key), _choosing(scope, send)
        await self._app(scope, receive, send)

    def _watched(self, receive: Receive, key: Key | None) -> Receive:
        async def watched() -> Message:
            message = await receive()
            if message["type"] == "websocket.receive" and self._revoked(key):
                return {"type": "websocket.disconnect", "code": 1008, "reason": WRONG}
            return message

        return watched

    def _revoked(self, key: Key | None) -> bool:
        return self._keyring.required and (key is None or not self._keyring.has(key))


def _is_free(scope: Scope) -> bool:
    return scope["type"] == "http" and (scope["method"] == "OPTIONS" or bool(scope["state"]["area"] == "open"))


def _choosing(scope: Scope, send: Send) -> Send:
    """Accepts with our subprotocol where the client offered it and the app chose none."""
    if SUBPROTOCOL not in scope.get("subprotocols", ()):
        return send

    def relay(message: Message) -> Awaitable[None]:  # no coroutine of its own: every token passes here
        if message["type"] == "websocket.accept" and not message.get("subprotocol"):
            message["subprotocol"] = SUBPROTOCOL
        return send(message)

    return relay


QUERY = "api_key"
KEY_SUBPROTOCOL = "locallab.key."

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
    scope["subprotocols"] = [each for each in offered if not each.startswith(KEY_SUBPROTOCOL)]
    return found + [each.removeprefix(KEY_SUBPROTOCOL) for each in offered if each.startswith(KEY_SUBPROTOCOL)]


def _is_key(pair: bytes) -> bool:
    return unquote_plus(pair.partition(b"=")[0].decode("latin-1")) == QUERY
