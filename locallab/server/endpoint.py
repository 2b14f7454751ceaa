"""Routes with a contract, from which the API's description is generated."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp

from locallab.server.reply import noted
from locallab.server.roles import require_admin
from locallab.server.streaming import EVENTS

ADMIN = "Where keys are required, it takes one with the role admin."


@dataclasses.dataclass(frozen=True, slots=True)
class Contract:
    """Input and output of one endpoint.

    `body` is a msgspec struct or a list of them, `answer` that or a union; with `plain`, some clients get a text instead of
    the answer. With `streams`, the body's `stream` turns the answer into a stream of the media type `stream_type`. `errors` are
    statuses of failures besides those of every route. `summary` and `description` are the first line and the rest of the
    handler's docstring. With `admin` it asks for a key with that role, where keys are required.
    """

    tag: str
    summary: str
    body: type | None = None
    answer: Any = None
    streams: bool = False
    errors: tuple[int, ...] = ()
    media_type: str = "application/json"
    description: str = ""
    stream_type: str = EVENTS
    plain: bool = False
    admin: bool = False


def _for_admins(handler: Callable[..., Any], doing: str) -> Callable[..., Any]:
    @functools.wraps(handler)
    async def checked(request: Request) -> Any:
        require_admin(request, doing)
        return await handler(request)

    return checked


class Endpoint(Route):
    """A Starlette route with its contract."""

    def __init__(
        self,
        path: str,
        handler: Callable[..., Any],
        *,
        tag: str,
        method: str = "GET",
        body: type | None = None,
        answer: Any = None,
        streams: bool = False,
        errors: tuple[int, ...] = (),
        media_type: str = "application/json",
        stream_type: str = EVENTS,
        plain: bool = False,
        admin: bool = False,
    ) -> None:
        handler = handler if body is None else _noting(handler)
        super().__init__(path, _for_admins(handler, f"{method} {path}") if admin else handler, methods=[method])
        summary, _, rest = (inspect.getdoc(handler) or "").partition("\n")
        about = "\n\n".join(filter(None, (rest.strip(), ADMIN if admin else "")))
        self.contract = Contract(tag, summary, body, answer, streams, errors, media_type, about, stream_type, plain, admin)


def _noting(handler: Callable[..., Any]) -> Callable[..., Any]:
    """Add what `body.read` has noted to the handler's response."""

    @functools.wraps(handler)
    async def noting(request: Request) -> ASGIApp:
        response: ASGIApp = await handler(request)
        return noted(response, getattr(request.state, "notes", ()))

    return noting


class Generating(Endpoint):
    """A route on which a model generates an answer, whole or, if it `streams`, as a stream."""

    def __init__(
        self,
        path: str,
        handler: Callable[..., Any],
        *,
        tag: str,
        body: type,
        answer: Any,
        streams: bool = True,
        stream_type: str = EVENTS,
    ) -> None:
        super().__init__(
            path,
            handler,
            tag=tag,
            method="POST",
            body=body,
            answer=answer,
            streams=streams,
            errors=(404, 503),
            stream_type=stream_type,
        )
