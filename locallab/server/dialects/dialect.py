"""The record of a dialect, and the services its routes are made from."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from starlette.routing import BaseRoute

from locallab.keys import Keyring
from locallab.pool import Pool
from locallab.server.areas import Area
from locallab.server.cluster import Cluster
from locallab.server.middleware import Traffic
from locallab.server.streaming import EVENTS, LINES, dumps, event, line, typed_event
from locallab.server.usage import UsageLog
from locallab.settings import ServerSettings
from locallab.tunnel import Tunnel


@dataclasses.dataclass(frozen=True, kw_only=True)
class Services:
    """The objects that routes may need. `tunnel` None: the server has no public address. `cluster` None: it is the front of
    none. What routes add to `closing` is called when the server stops.
    """

    pool: Pool
    settings: ServerSettings
    keyring: Keyring
    traffic: Traffic
    usage: UsageLog
    tunnel: Tunnel | None = None
    cluster: Cluster | None = None
    closing: list[Callable[[], Awaitable[None]]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dialect:
    """One HTTP API.

    `prefixes` are the paths at and below which it answers; the longest prefix of all dialects wins. `error_body` makes the body
    of an error from the error and the name of the prompt's field, and `problem` is the shape of that body. `prompts` has that
    name by path where it is not "messages". `tags` are the groups of its routes in the API's description, each with a sentence.
    `areas` maps root paths to areas of the API; all other paths are in the area "dialect". `failing` makes the body of the
    event that ends a stream which fails, if that is not the error's; with `typed`, events are named by their `type`.
    """

    name: str
    prefixes: Sequence[str]
    error_body: Callable[[Exception, str], dict[str, Any]]
    problem: type
    routes: Callable[[Services], list[BaseRoute]]
    tags: Mapping[str, str] = dataclasses.field(default_factory=dict)
    prompts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    areas: Mapping[str, Area] = dataclasses.field(default_factory=dict)
    failing: Callable[[Exception], dict[str, Any]] | None = None
    typed: bool = False

    def ending(self, error: Exception, media_type: str) -> bytes:
        """Return what ends a stream of this media type, or a WebSocket of JSON, by an error."""
        body = self.failing(error) if self.failing else self.error_body(error, "messages")
        if media_type == EVENTS:
            return typed_event(body) if self.typed else event(body)
        return line(body) if media_type == LINES else dumps(body)
