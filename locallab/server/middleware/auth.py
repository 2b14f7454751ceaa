"""API keys that clients present, and the check of them."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Iterable, Mapping
from typing import NoReturn
from urllib.parse import parse_qsl, unquote_plus

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from locallab.engine import Caller
from locallab.errors import KeysUnreadable, Unauthorized
from locallab.keys import Key, Keyring, Tier
from locallab.server.middleware.rate_limit import RateLimits, identity, parse
from locallab.server.roles import role_of
from locallab.server.usage import UsageLog

QUERY = "api_key"
KEY_SUBPROTOCOL = "locallab.key."

SUBPROTOCOL = "locallab"
"""Offered by browsers beside the subprotocol that carries their key: they require one of theirs to be selected."""

MISSING = "an API key is required: send it as Authorization: Bearer KEY, or in the header x-api-key or api-key"
WRONG = "the API key is not valid"

WEIGHTS: Mapping[Tier, int] = {"free": 1, "pro": 2}
"""Shares of the engine's time; that of a client without a key is the smallest."""

WRONG_KEYS = parse("wrong keys", "20/minute")
"""Limit of wrong keys from one address."""

_HEADERS = (b"authorization", b"x-api-key", b"api-key")


def from_headers(headers: Iterable[tuple[bytes, bytes]]) -> list[str]:
    """Return the keys in the headers. There may be several: some clients send an empty one beside the real one."""
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


class Credentials:
    """Put presented keys into scope["state"]["presented"], and remove them from a WebSocket's query and subprotocols.

    It mutates the server's own scope, and runs ahead of all logs: a logged path contains no key.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            presented = from_headers(scope["headers"])
            if scope["type"] == "websocket":
                query: bytes = scope.get("query_string", b"")
                presented += [value for name, value in parse_qsl(query.decode("latin-1")) if name == QUERY]
                names = ((unquote_plus(pair.partition(b"=")[0].decode("latin-1")), pair) for pair in query.split(b"&"))
                scope["query_string"] = b"&".join(pair for name, pair in names if name != QUERY)
                offered: list[str] = scope.get("subprotocols", [])
                presented += [each.removeprefix(KEY_SUBPROTOCOL) for each in offered if each.startswith(KEY_SUBPROTOCOL)]
                scope["subprotocols"] = [each for each in offered if not each.startswith(KEY_SUBPROTOCOL)]
            scope.setdefault("state", {})["presented"] = presented
        await self._app(scope, receive, send)


def _selecting_subprotocol(send: Send) -> Send:
    """Return a `send` that accepts with our subprotocol if the app selects none."""

    def relay(message: Message) -> Awaitable[None]:  # not a coroutine: it runs for every token
        if message["type"] == "websocket.accept" and not message.get("subprotocol"):
            message["subprotocol"] = SUBPROTOCOL
        return send(message)

    return relay


class Auth:
    """Put the client's key, or None, into scope["state"]["key"], what it may do into `role`, who calls into `caller`, and
    what counts the usage of a model for it into `spend`.

    Where a key is required, raise Unauthorized if it is missing or wrong, RateLimited for too many wrong ones from an address,
    from which a valid key still passes, and KeysUnreadable if it might be valid. To the app, a WebSocket whose key is revoked
    looks disconnected.
    """

    def __init__(
        self, app: ASGIApp, keyring: Keyring, limits: RateLimits, usage: UsageLog, isolates: bool | None = None
    ) -> None:
        """`isolates`: each caller has prefixes of its own; None: where there are several keys."""
        self._app = app
        self._keyring = keyring
        self._limits = limits
        self._usage = usage
        self._isolates = isolates

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        presented = scope["state"]["presented"]
        scope["state"]["key"] = key = self._keyring.find(presented)
        scope["state"]["caller"] = self._caller(key, scope)
        scope["state"]["spend"] = functools.partial(self._usage.add, key)
        required = self._keyring.required
        scope["state"]["role"] = role_of(key, required)
        is_free = scope["type"] == "http" and (scope["method"] == "OPTIONS" or scope["state"]["area"] == "open")
        if key is None and required and not is_free:
            await self._refuse(scope)
        if scope["type"] == "websocket":
            receive = self._until_revoked(receive, key)
            if SUBPROTOCOL in scope.get("subprotocols", ()):
                send = _selecting_subprotocol(send)
        await self._app(scope, receive, send)

    def _caller(self, key: Key | None, scope: Scope) -> Caller:
        id = identity(key, (scope.get("client") or ("-",))[0])
        isolates = self._keyring.several if self._isolates is None else self._isolates
        weight = WEIGHTS[key.tier] if key else min(WEIGHTS.values())
        return Caller(id=id, weight=weight, owner=id if isolates else "", name=key.name if key else "")

    async def _refuse(self, scope: Scope) -> NoReturn:
        if not scope["state"]["presented"]:
            raise Unauthorized(MISSING)
        await self._limits.count(WRONG_KEYS, f"wrong keys of {scope['state']['caller'].id}", "wrong API keys, ")
        raise Unauthorized(WRONG) if self._keyring.readable else KeysUnreadable

    def _until_revoked(self, receive: Receive, key: Key | None) -> Receive:
        async def watched() -> Message:
            message = await receive()
            if message["type"] != "websocket.receive" or not self._keyring.required:
                return message
            if key is not None and self._keyring.has(key):
                return message
            return {"type": "websocket.disconnect", "code": 1008, "reason": WRONG}

        return watched
