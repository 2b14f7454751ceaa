"""Canonical paths: clients join a base URL and a route in many ways."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from locallab.server.areas import Owner, area, is_below, owner


def canonical(path: str, dialects: Sequence[Owner]) -> str:
    """Drop duplicate and trailing slashes, and put /v1 once before a path that is served without it too."""
    path = "/" + "/".join(filter(None, path.split("/")))
    while path.startswith("/v1/v1/"):
        path = path.removeprefix("/v1")
    if any(root and is_below(path, root) for each in dialects for root in each.prefixes):
        return path
    roots = [root for each in dialects for root in each.bare]
    is_bare = path in roots or path.startswith(tuple(root for root in roots if root.endswith("/")))
    return f"/v1{path}" if is_bare else path


class Paths:
    """Give a request the canonical spelling of its path, and scope["state"] the path's dialect and area."""

    def __init__(self, app: ASGIApp, dialects: Sequence[Owner]) -> None:
        self._app = app
        self._dialects = dialects

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            path = canonical(scope["path"], self._dialects)
            owned_by = owner(self._dialects, path)
            scope = {**scope, "path": path}
            scope.setdefault("state", {}).update(dialect=owned_by, area=area(owned_by, path))
        await self._app(scope, receive, send)
