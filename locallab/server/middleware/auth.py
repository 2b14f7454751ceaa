"""Asks for a key where one is required, and says whose it is."""

from __future__ import annotations

from collections.abc import Awaitable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from locallab.errors import Unauthorized
from locallab.keys import Key, Keyring
from locallab.server.areas import is_open

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
    return scope["type"] == "http" and (scope["method"] == "OPTIONS" or is_open(scope["path"]))


def _choosing(scope: Scope, send: Send) -> Send:
    """Accepts with our subprotocol where the client offered it and the app chose none."""
    if SUBPROTOCOL not in scope.get("subprotocols", ()):
        return send

    def relay(message: Message) -> Awaitable[None]:  # no coroutine of its own: every token passes here
        if message["type"] == "websocket.accept" and not message.get("subprotocol"):
            message["subprotocol"] = SUBPROTOCOL
        return send(message)

    return relay
