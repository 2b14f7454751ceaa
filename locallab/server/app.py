"""The application as data: routes, middleware, what answers errors, what happens at start and stop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from locallab.errors import LocalLabError
from locallab.keys import Keyring, KeyStore
from locallab.pool import Pool
from locallab.server.dialects.dialect import Services
from locallab.server.dialects.registry import DIALECTS
from locallab.server.docs.routes import Docs
from locallab.server.errors import report, respond
from locallab.server.inference.generation import ClientGone
from locallab.server.inference.lease import Leases
from locallab.server.middleware import (
    AccessLog,
    Auth,
    BodyLimit,
    Cors,
    CountTraffic,
    Credentials,
    Failsafe,
    HostCheck,
    OriginCheck,
    Paths,
    Proxies,
    RateLimit,
    Traffic,
    Tunnelled,
    networks,
)
from locallab.server.middleware.hosts import Hosts
from locallab.server.middleware.origins import Origins
from locallab.server.middleware.rate_limit import RateLimits
from locallab.settings import ServerSettings
from locallab.tunnel import Tunnel

CLIENT_GONE = 499
"""The status in the access log of a request whose client left; nobody receives it."""


AGENTS = ["127.0.0.1", "::1"]
"""Where a tunnel's agent connects from; it tells the client's address in X-Forwarded-For."""


def create_app(pool: Pool, settings: ServerSettings, keyring: Keyring | None = None, tunnel: Tunnel | None = None) -> Starlette:
    """The server of `pool`'s model. Starting gives the pool its event loop; stopping closes it, which ends all streams.

    `keyring` None: the keys of this machine. `tunnel`: what comes through it is counted. Raises ConfigError for a setting that
    cannot be used.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        pool.start(asyncio.get_running_loop())
        yield
        await asyncio.to_thread(pool.close)

    keyring = keyring or Keyring(settings, KeyStore())
    traffic = Traffic()
    services = Services(pool=pool, settings=settings, keyring=keyring, traffic=traffic, tunnel=tunnel)
    routes = [route for dialect in DIALECTS for route in dialect.routes(services)]
    routes += Docs(routes).routes()
    counting = [Middleware(Tunnelled, tunnel=tunnel)] if tunnel else []
    return Starlette(
        routes=routes,
        middleware=counting + _middleware(services, routes),
        exception_handlers={LocalLabError: _answer, HTTPException: _answer, ClientGone: _nobody},
        lifespan=lifespan,
    )


def _middleware(services: Services, routes: Sequence[BaseRoute]) -> list[Middleware]:
    """From the outside in. Who the client is and what must not be logged comes before the log; CORS marks refusals too, so
    it stands before what refuses, and the failsafe, which answers for that, right behind it."""
    settings, keyring, tunnel = services.settings, services.keyring, services.tunnel
    origins = Origins(settings.cors_origins)
    trusted = networks(settings.trusted_proxies) + (AGENTS if tunnel else [])
    return [
        Middleware(Proxies, trusted=trusted),
        Middleware(Credentials),
        Middleware(AccessLog, enabled=settings.access_log),
        Middleware(Paths, dialects=DIALECTS),
        Middleware(CountTraffic, traffic=services.traffic, routes=routes),
        Middleware(Cors, origins=origins, keyring=keyring),
        Middleware(Failsafe),
        Middleware(HostCheck, hosts=Hosts(settings.allowed_hosts), keyring=keyring, tunnel=tunnel),
        Middleware(OriginCheck, origins=origins, keyring=keyring),
        Middleware(Auth, keyring=keyring),
        Middleware(RateLimit, limits=RateLimits(settings)),
        Middleware(BodyLimit, mib=settings.max_body_mib),
        Middleware(Leases),
    ]


async def _answer(request: Request, error: Exception) -> Response:
    path = request.scope["path"]
    if isinstance(error, HTTPException) and error.status_code == 404:
        error = HTTPException(404, f"no such path: {request.method} {path}")
    elif isinstance(error, HTTPException) and error.status_code == 405:
        error = HTTPException(405, f"method not allowed: {request.method} {path}", {"allow": _allowed(request)})
    report(error, f"{request.method} {path}")
    return respond(request, error)


def _allowed(request: Request) -> str:
    """The methods of this path: several routes may share it, and Starlette tells those of the first only."""
    routes = (each for each in request.app.routes if isinstance(each, Route) and each.path_regex.match(request.scope["path"]))
    return ", ".join(sorted({method for route in routes for method in route.methods or ()}))


async def _nobody(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_GONE)
