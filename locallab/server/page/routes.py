"""Routes of the page: `/` for browsers, its files, and what it asks about its own key."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Match, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from locallab.keys import Keyring, Role, Tier
from locallab.server.endpoint import Endpoint
from locallab.server.fields.body import read
from locallab.server.inference.generation import unless_gone
from locallab.server.page.render import RenderBody, Rendering, render
from locallab.server.reply import reply

FOLDER = Path(__file__).parent

CLIENTS = FOLDER.parents[1] / "cli" / "doctor" / "README.md"
"""The documentation of clients. The view Connect has their set-ups from it."""

POLICY = (
    "default-src 'self'; img-src 'self' data:; media-src 'self' data:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
"""Content-Security-Policy of the page: nothing from another origin, no inline script or style, and no text becomes markup."""

HEADERS = {
    "content-security-policy": POLICY,
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",  # asked for again each time, answered by 304
}

HTML = "text/html"

_RENDERING = ThreadPoolExecutor(1, "rendering")
"""One thread, so that no client takes more of the machine than a core for it."""


class Access(msgspec.Struct):
    """What the key of a request is, and what it may do."""

    key_required: bool
    role: Annotated[Role, Meta(description="what the request may do: admin where no key is required")]
    key: Annotated[str | None, Meta(description="name of the key; null: the request has none")]
    tier: Annotated[Tier | None, Meta(description="rate limit of the key")]


def wants_page(accept: str) -> bool:
    """Return whether the header is a browser's: it names HTML, and not only any type."""
    return any(each.partition(";")[0].strip().lower() == HTML for each in accept.split(","))


class PageFile(Route):
    """A route of a file of the page, which is no part of the described API."""


class ForBrowsers(PageFile):
    """A route that only browsers see."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, child = super().matches(scope)
        if match == Match.FULL:
            accept = next((value for name, value in scope["headers"] if name == b"accept"), b"")
            if not wants_page(accept.decode("latin-1")):
                return Match.NONE, {}
        return match, child


class Page:
    """The routes. They go ahead of those that give `/` to other clients."""

    def __init__(self, keyring: Keyring) -> None:
        self._files = StaticFiles(directory=FOLDER)
        self._keyring = keyring

    def routes(self) -> list[BaseRoute]:
        return [
            ForBrowsers("/", self.index),
            PageFile("/page/clients.md", self.clients),
            PageFile("/page/{file}", self.file),
            Endpoint("/api/v1/me", self.me, tag="system", answer=Access),
            Endpoint("/api/v1/render", self.render, tag="system", method="POST", body=RenderBody, answer=Rendering),
        ]

    async def index(self, request: Request) -> Response:
        """Return the page, at a path that ends in a slash: the addresses in it are relative."""
        path = request.scope["raw_path"].decode("latin-1").strip("/")
        if path and not request.scope["raw_path"].endswith(b"/"):  # the root path
            return RedirectResponse(f"/{path}/", headers={"vary": "Accept"})
        return await self._get("index.html", request, {"vary": "Accept"})

    async def file(self, request: Request) -> Response:
        """Return a module or a style sheet of the page."""
        name = request.path_params["file"]
        suffix = os.path.splitext(name)[1]
        return await self._get(name if suffix in (".js", ".css", ".svg") else "no such file", request)

    async def clients(self, _: Request) -> Response:
        """Return the documentation of clients, with their set-ups."""
        return FileResponse(CLIENTS, media_type="text/markdown", headers=HEADERS)

    async def me(self, request: Request) -> Response:
        """Show what the key of the request is, and what it may do."""
        key, required = request.state.key, self._keyring.required
        return reply(Access(required, request.state.role, key.name if key else None, key.tier if key else None))

    async def render(self, request: Request) -> Response:
        """Render Markdown, or code, as trees of elements.

        No HTML text is in the answer: the client makes the elements, of tags that it knows. Links are http, https or mailto;
        pictures are links too. Of a text that grows, only the end need be sent again: where a text ends in LF, all of its
        blocks but the last one stay as they are, whatever follows, and in the middle of a line all but the last two.
        """
        body = await read(request, RenderBody)

        async def rendered() -> bytes:
            return await asyncio.get_running_loop().run_in_executor(_RENDERING, _render, body)

        return Response(await unless_gone(rendered(), request.receive), media_type="application/json")

    async def _get(self, name: str, request: Request, headers: dict[str, str] | None = None) -> Response:
        response = await self._files.get_response(name, request.scope)
        response.headers.update(HEADERS | (headers or {}))
        return response


def _render(body: RenderBody) -> bytes:
    return msgspec.json.encode(render(body.text, body.language))
