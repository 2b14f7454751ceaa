"""Routes of the documentation: /openapi.json, and /docs for people."""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import re
from collections.abc import Sequence

import msgspec
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute

from locallab.server.docs.openapi import document
from locallab.server.endpoint import Endpoint


def policy(page: str) -> str:
    """Return a Content-Security-Policy that allows the page's script and style, requests to this server and nothing else."""
    hashes = {}
    for tag in ("script", "style"):
        text = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)[0]
        hashes[tag] = f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
    return (
        f"default-src 'none'; script-src {hashes['script']}; style-src {hashes['style']}; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


class Docs:
    """Routes that describe `others` and themselves; all of them are below `root` for who reads it."""

    def __init__(self, others: Sequence[BaseRoute], root: str = "") -> None:
        own: list[BaseRoute] = [
            Endpoint("/openapi.json", self.openapi, tag="docs"),
            Endpoint("/docs", self.page, tag="docs", media_type="text/html"),
        ]
        self.described = [*others, *own]
        self._own = own
        self._openapi = msgspec.json.encode(document(self.described, root))
        self._page = importlib.resources.files(__package__).joinpath("page.html").read_text()
        self._policy = policy(self._page)

    def routes(self) -> list[BaseRoute]:
        return self._own

    async def openapi(self, request: Request) -> Response:
        """Return the description of this API in OpenAPI 3.1."""
        return Response(self._openapi, media_type="application/json")

    async def page(self, request: Request) -> Response:
        """Return a page to read and try this API; it needs no internet."""
        return HTMLResponse(self._page, headers={"content-security-policy": self._policy})
