"""Canonical paths: clients join a base URL and a route in many ways."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from locallab.errors import ConfigError
from locallab.server.areas import Owner, area, is_below, owner

_REPEATS = 3
"""How often a client may have put /v1 before a path too often."""

_ROOT = re.compile(r"(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+")


class Table:
    """Finds the route of a path, as Starlette matches them, in any spelling: with or without /v1 before it.

    A path as it stands goes ahead of its other spellings: /chat is the native route, and no dialect's.
    """

    def __init__(self, routes: Sequence[BaseRoute], dialects: Sequence[Owner]) -> None:
        self._prefixes = [prefix for each in dialects for prefix in each.prefixes if prefix]
        self._routes = [route for route in routes if isinstance(route, (Route, WebSocketRoute))]
        self._plain = {route.path for route in self._routes if not route.param_convertors}

    def find(self, path: str) -> tuple[str, str | None]:
        """Return the spelling of `path` that has a route, and the template of that route; `path` and None if there is none.

        Duplicate and trailing slashes are dropped.
        """
        path = "/" + "/".join(filter(None, path.split("/")))
        spellings = list(self._spellings(path))
        for spelling in spellings:
            if spelling in self._plain:
                return spelling, spelling
        for spelling in spellings:
            for route in self._routes:
                if route.path_regex.match(spelling):
                    return spelling, route.path_format
        return path, None

    def takes(self, root: str) -> bool:
        """Return whether `root` or a path below it has a route."""
        return self.find(root)[1] is not None or any(is_below(route.path, root) for route in self._routes)

    def _spellings(self, path: str) -> Iterator[str]:
        yield path
        if not any(is_below(path, prefix) for prefix in self._prefixes):
            yield f"/v1{path}"
        for _ in range(_REPEATS):
            if path.startswith("/v1/"):
                path = path.removeprefix("/v1")
                yield path


def root_of(setting: str, table: Table) -> str:
    """Return the root path in its canonical spelling, "" for none.

    Raises ConfigError if it is not a path, or if a request for it or below it could mean a route that stands there anyway.
    """
    root = setting.rstrip("/")
    if not root:
        return ""
    if not _ROOT.fullmatch(root):
        raise ConfigError(f"root_path: {setting!r} is not a path such as /llm")
    if table.takes(root):
        raise ConfigError(f"root_path: {setting!r} is where routes of the server are; choose another path, such as /llm")
    return root


class Paths:
    """Give a request the canonical spelling of its path, and scope["state"] the path's route, dialect and area.

    The area is the route's: no spelling that reaches a route escapes its limits. `root`, as `root_of` returns it, is taken off
    a path that begins with it.
    """

    def __init__(self, app: ASGIApp, dialects: Sequence[Owner], table: Table, root: str = "") -> None:
        self._app = app
        self._dialects = dialects
        self._table = table
        self._root = root

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            path = scope["path"]
            path, route = self._table.find(path[len(self._root) :] if is_below(path, self._root) else path)
            owned_by = owner(self._dialects, route or path)
            scope = {**scope, "path": path}
            scope.setdefault("state", {}).update(route=route, dialect=owned_by, area=area(owned_by, route or path))
        await self._app(scope, receive, send)
