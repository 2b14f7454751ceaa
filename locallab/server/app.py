"""The ASGI application: routes, middleware, error handlers and lifespan."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from locallab import redis_link
from locallab.errors import LocalLabError
from locallab.keys import Key, Keyring, KeyStore
from locallab.pool import Pool
from locallab.server.cluster import Cluster
from locallab.server.connections import UNIX
from locallab.server.dialects.dialect import Services
from locallab.server.dialects.registry import DIALECTS
from locallab.server.docs.routes import Docs
from locallab.server.errors import report, respond
from locallab.server.inference.generation import ClientGone
from locallab.server.inference.lease import Leases
from locallab.server.inference.media import media_room
from locallab.server.inference.shared_prompts import read_prompts, share
from locallab.server.middleware import (
    AccessLog,
    Auth,
    BodyLimit,
    ContentDecoding,
    Cors,
    Credentials,
    Failsafe,
    HostCheck,
    OriginCheck,
    Paths,
    Proxies,
    RateLimit,
    Traffic,
    TrafficCounter,
    TunnelCounter,
    networks,
)
from locallab.server.middleware.hosts import Hosts
from locallab.server.middleware.origins import Origins
from locallab.server.middleware.paths import Table, root_of
from locallab.server.middleware.rate_limit import RateLimits
from locallab.server.page.routes import Page
from locallab.server.shared_usage import usage_store
from locallab.server.usage import UsageFile, UsageLog
from locallab.settings import ServerSettings
from locallab.tunnel import Tunnel

if TYPE_CHECKING:
    from locallab.server.middleware.tracing import Traces

CLIENT_GONE = 499
"""Status in the access log of a request whose client disconnected; nobody receives it."""

AGENTS = ["127.0.0.1", "::1"]
"""Addresses of a tunnel's agent, which reports the client's address in X-Forwarded-For."""

log = logging.getLogger(__name__)


async def _answer(request: Request, error: Exception) -> Response:
    path = request.scope["path"]
    if isinstance(error, HTTPException) and error.status_code == 404:
        error = HTTPException(404, f"no such path: {request.method} {path}")
    elif isinstance(error, HTTPException) and error.status_code == 405:
        # several routes may share the path; Starlette reports the methods of the first one only
        routes = (each for each in request.app.routes if isinstance(each, Route) and each.path_regex.match(path))
        allowed = ", ".join(sorted({method for route in routes for method in route.methods or ()}))
        if request.method == "OPTIONS":
            return Response(status_code=204, headers={"allow": allowed})
        error = HTTPException(405, f"method not allowed: {request.method} {path}", {"allow": allowed})
    report(error, f"{request.method} {path}")
    return respond(request, error)


async def _answer_nobody(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_GONE)


HANDLERS: Mapping[Any, Any] = {LocalLabError: _answer, HTTPException: _answer, ClientGone: _answer_nobody}


def _middleware(
    services: Services, table: Table, root: str, last: Sequence[Middleware], traces: Traces | None
) -> list[Middleware]:
    """Return the middleware from the outermost to the innermost, which are the `last`.

    The client's address and the removal of keys come ahead of the log. CORS marks refusals too, so it comes ahead of all that
    refuse; the failsafe, which answers for them, comes right behind it. Bodies have a limit as sent and one as decoded.
    """
    settings, keyring, tunnel = services.settings, services.keyring, services.tunnel
    origins = Origins(settings.cors_origins)
    limits = RateLimits(settings)
    body_limit: dict[str, Any] = {"mib": settings.max_body_mib, "more": functools.partial(media_room, services.pool, settings)}
    trusted = networks(settings.trusted_proxies) + (AGENTS if tunnel else []) + ([UNIX[0]] if settings.uds else [])
    tracing, spending = traces.middleware() if traces else ((), ())
    return [
        *([Middleware(TunnelCounter, tunnel=tunnel)] if tunnel else []),
        Middleware(Proxies, trusted=trusted),
        Middleware(Credentials),
        Middleware(AccessLog, enabled=settings.access_log, box=services.pool.supervision.box),
        *tracing,
        Middleware(Paths, dialects=DIALECTS, table=table, root=root),
        Middleware(TrafficCounter, traffic=services.traffic),
        Middleware(Cors, origins=origins, keyring=keyring),
        Middleware(Failsafe),
        Middleware(HostCheck, hosts=Hosts(settings.allowed_hosts), keyring=keyring, tunnel=tunnel),
        Middleware(OriginCheck, origins=origins, keyring=keyring),
        Middleware(Auth, keyring=keyring, limits=limits, usage=services.usage, isolates=settings.isolate_cache),
        *spending,
        Middleware(RateLimit, limits=limits),
        Middleware(BodyLimit, **body_limit),
        Middleware(ContentDecoding),
        Middleware(BodyLimit, **body_limit),
        *last,
    ]


def create_app(
    pool: Pool,
    settings: ServerSettings,
    keyring: Keyring | None = None,
    tunnel: Tunnel | None = None,
    cluster: Cluster | None = None,
    relay: Middleware | None = None,
) -> Starlette:
    """Create the app of `pool`'s models. Startup gives the pool its event loop; shutdown closes it, which ends all streams.

    `keyring` defaults to the keys of this machine; traffic through `tunnel` is counted. The front of a `cluster` has a `relay`,
    which gives requests to its replicas once they have passed all checks. Raises ConfigError for an invalid setting.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        pool.start(asyncio.get_running_loop())
        if traces is not None:
            traces.start()
        yield
        await asyncio.to_thread(pool.close)  # ends what is running, which then counts
        await asyncio.to_thread(usage.close)
        await asyncio.to_thread(services.keyring.close)
        for close in services.closing:
            await close()
        if traces is not None:
            await asyncio.to_thread(traces.close)

    keyring = keyring or Keyring(settings, KeyStore())
    traces = None
    if settings.otel:
        from locallab.server.middleware.tracing import Traces  # whose library is slow to import, and may be missing

        traces = Traces()
    usage = UsageLog(usage_store(settings), settings.usage_days)
    services = Services(
        pool=pool, settings=settings, keyring=keyring, traffic=Traffic(), usage=usage, tunnel=tunnel, cluster=cluster
    )
    if settings.redis_url:
        log.info("%s are shared through Redis at %s", redis_link.SHARED, redis_link.address(settings.redis_url))
    if settings.shared_prompts:
        pool.on_loaded(functools.partial(share, read_prompts(settings.shared_prompts)))
    routes = Page(keyring).routes() if settings.page else []
    routes += [route for dialect in DIALECTS for route in dialect.routes(services)]
    routes += Docs(routes, settings.root_path.rstrip("/")).routes()
    table = Table(routes, DIALECTS)
    last = [*([relay] if relay else []), Middleware(Leases)]
    return Starlette(
        routes=routes,
        middleware=_middleware(services, table, root_of(settings.root_path, table), last, traces),
        exception_handlers=HANDLERS,
        lifespan=lifespan,
    )


class _NoKeys(KeyStore):
    """Stands for the keys in a replica: its front has checked them."""

    def version(self) -> None:
        return None

    def read(self) -> tuple[Key, ...]:
        return ()


def create_replica_app(pool: Pool, settings: ServerSettings, lifespan: Callable[[Starlette], Any]) -> Starlette:
    """Create the app of a cluster's replica, for requests that a front has checked: their scope's state has the key, its role,
    the caller, and what counts the usage. It has every route of the server, and no key is ever required.
    `app.state.closing` is to be called at the end."""
    settings = dataclasses.replace(settings, auth=False)
    keyring = Keyring(dataclasses.replace(settings, redis_url=None), _NoKeys())
    services = Services(pool=pool, settings=settings, keyring=keyring, traffic=Traffic(), usage=UsageLog(UsageFile(), 0))
    if settings.shared_prompts:
        pool.on_loaded(functools.partial(share, read_prompts(settings.shared_prompts)))
    routes = [route for dialect in DIALECTS for route in dialect.routes(services)]
    inner = [Middleware(Paths, dialects=DIALECTS, table=Table(routes, DIALECTS)), Middleware(Failsafe), Middleware(Leases)]
    app = Starlette(routes=routes, middleware=inner, exception_handlers=HANDLERS, lifespan=lifespan)
    app.state.closing = services.closing
    return app
