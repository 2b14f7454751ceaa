"""A route that says what it takes and gives: the API's description is made from it."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

from starlette.routing import Route


@dataclasses.dataclass(frozen=True, slots=True)
class Contract:
    """What one endpoint takes and gives. `body` and `answer` are msgspec structs; `streams` says that the body's `stream`
    turns the answer into server-sent events; `errors` are the statuses it can fail with besides those every route has."""

    tag: str
    summary: str
    body: type | None = None
    answer: type | None = None
    streams: bool = False
    errors: tuple[int, ...] = ()
    media_type: str = "application/json"


class Endpoint(Route):
    """A Starlette route with its contract; the summary is the first line of the handler's docstring."""

    def __init__(
        self,
        path: str,
        handler: Callable[..., Any],
        *,
        tag: str,
        method: str = "GET",
        body: type | None = None,
        answer: type | None = None,
        streams: bool = False,
        errors: tuple[int, ...] = (),
        media_type: str = "application/json",
    ) -> None:
        super().__init__(path, handler, methods=[method])
        summary = (inspect.getdoc(handler) or "").partition("\n")[0]
        self.contract = Contract(tag, summary, body, answer, streams, errors, media_type)
