"""Many spellings of a path are one: clients join a base URL and a route in every way there is."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

NATIVE_MODELS = {"/models/current", "/models/available", "/models/load", "/models/unload"}

BARE = {
    "/chat/completions",
    "/completions",
    "/models",
    "/responses",
    "/messages",
    "/messages/count_tokens",
    "/embeddings",
    "/rerank",
    "/fim/completions",
}
"""Routes that are served without /v1 too."""

BELOW = ("/models/", "/responses/")
"""Where there are such routes for single things."""


class Paths:
    """Drops doubled and trailing slashes, and puts /v1 once before the routes that have it, however often a client did."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            scope = {**scope, "path": canonical(scope["path"])}
        await self._app(scope, receive, send)


def canonical(path: str) -> str:
    path = "/" + "/".join(filter(None, path.split("/")))
    while path.startswith("/v1/v1/"):
        path = path.removeprefix("/v1")
    native = path in NATIVE_MODELS or path.startswith("/models/status/")
    bare = path in BARE or (path.startswith(BELOW) and not native)
    return f"/v1{path}" if bare else path
