"""Leases of models, each held until the answer of its request has been sent in full."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from locallab.engine import Kind
from locallab.errors import InvalidField
from locallab.pool import Loaded, Pool
from locallab.server.inference.aside import RECEIVE
from locallab.server.inference.generation import unless_gone
from locallab.server.roles import check_fetch

DOES: Mapping[Kind, str] = {"text": "writes text", "embedding": "makes embeddings", "reranker": "ranks documents"}
CANNOT: Mapping[Kind | None, str] = {
    "text": "and no text",
    "embedding": "and makes no embeddings",
    "reranker": "and ranks nothing",
}

HELD = "locallab.leases"
"""The key of the stack in a request's scope that releases its leases."""

LONGEST = 1024
"""Maximum characters of a model's name in a request; every answer repeats it."""


class Leases:
    """Middleware that gives every HTTP request a stack for its leases, and releases them when the app is done with it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with contextlib.ExitStack() as stack:
            scope[HELD] = stack
            await self._app(scope, receive, send)


def afterwards(request: Request, do: Callable[[], None]) -> None:
    """Call `do` once the answer has been sent, or has failed, and the request's leases are released."""
    stack: contextlib.ExitStack = request.scope[HELD]
    before = stack.pop_all()
    stack.callback(do)
    stack.push(before.__exit__)


async def lease(
    request: Request,
    pool: Pool,
    model_id: str | None,
    *,
    strict: bool,
    kind: Kind | None = "text",
    also: Kind | None = None,
) -> Loaded:
    """Lease the model that `Pool.lease` finds until the request ends. Call it when the body has been read.

    Raises ClientGone when the client leaves while the model is loaded, InvalidField when the name is too long, or the model not
    of this `kind` (None: any) nor of the one that will `also` do, AdminRequired when the weights are not on disk and the client
    may not fetch them, and what `Pool.lease` and `Lease.wait` raise.
    """
    if model_id is not None and len(model_id) > LONGEST:
        raise InvalidField("model", f"must have at most {LONGEST} characters, has {len(model_id)}")
    await check_fetch(request.scope["state"], pool, model_id)
    held = pool.lease(model_id, strict=strict, kind=kind)
    request.scope[HELD].callback(held.release)
    RECEIVE.set(request.receive)
    loaded = await (held.wait() if held.ready else unless_gone(held.wait(), request.receive))
    if loaded.engine.info.kind != also:
        require(loaded, kind)
    return loaded


def require(loaded: Loaded, kind: Kind | None) -> None:
    """Raise InvalidField unless the model is of this kind; None is any."""
    found = loaded.engine.info.kind
    if kind not in (None, found):
        raise InvalidField("model", f"{loaded.spec.id!r} {DOES[found]}, {CANNOT[kind]}; load or name a model that does")
