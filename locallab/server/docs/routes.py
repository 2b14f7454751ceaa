"""What the API is: /openapi.json, and /docs for people."""

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


class Docs:
    """The routes. They describe `others` and themselves."""

    def __init__(self, others: Sequence[BaseRoute]) -> None:
        own: list[BaseRoute] = [
            Endpoint("/openapi.json", self.openapi, tag="docs"),
            Endpoint("/docs", self.page, tag="docs", media_type="text/html"),
        ]
        self.described = [*others, *own]
        self._own = own
        self._openapi = msgspec.json.encode(document(self.described))
        self._page = importlib.resources.files(__package__).joinpath("page.html").read_text()
        self._policy = policy(self._page)

    def routes(self) -> list[BaseRoute]:
        return self._own

    async def openapi(self, request: Request) -> Response:
        """The description of this API, in OpenAPI 3.1."""
        return Response(self._openapi, media_type="application/json")

    async def page(self, request: Request) -> Response:
        """The same to read and to try; needs no internet."""
        return HTMLResponse(self._page, headers={"content-security-policy": self._policy})


def policy(page: str) -> str:
    """Lets the page run its own script and style, speak with this server, and nothing else."""
    script, style = (_hash(re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)[0]) for tag in ("script", "style"))
    return (
        f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
