"""The application as data: routes, middleware, what answers errors, what happens at start and stop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response

from locallab.errors import LocalLabError
from locallab.pool import Pool
from locallab.server.errors import report, respond
from locallab.server.generate import ClientGone
from locallab.server.middleware import AccessLog, BodyLimit, Failsafe, Paths
from locallab.server.routes.models import Models
from locallab.server.routes.native import Native
from locallab.server.routes.openai import OpenAI
from locallab.server.routes.system import System
from locallab.settings import ServerSettings

CLIENT_GONE = 499
"""The status in the access log of a request whose client left; nobody receives it."""


def create_app(pool: Pool, settings: ServerSettings) -> Starlette:
    """The server of `pool`'s model. Starting gives the pool its event loop; stopping closes it, which ends all streams."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        pool.start(asyncio.get_running_loop())
        yield
        await asyncio.to_thread(pool.close)

    return Starlette(
        routes=[
            *Native(pool, settings).routes(),
            *Models(pool).routes(),
            *System(pool).routes(),
            *OpenAI(pool, settings).routes(),
        ],
        middleware=[
            Middleware(AccessLog, enabled=settings.access_log),
            Middleware(Paths),
            Middleware(Failsafe),
            Middleware(BodyLimit, mib=settings.max_body_mib),
        ],
        exception_handlers={LocalLabError: _answer, HTTPException: _answer, ClientGone: _nobody},
        lifespan=lifespan,
    )


async def _answer(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException) and error.status_code in (404, 405):
        reason = "no such path" if error.status_code == 404 else "method not allowed"
        error = HTTPException(error.status_code, f"{reason}: {request.method} {request.scope['path']}", error.headers)
    report(error, f"{request.method} {request.scope['path']}")
    return respond(request, error)


async def _nobody(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_GONE)
