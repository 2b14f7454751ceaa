"""The machine and the service: /, /system/info, /metrics, /health."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Annotated, Literal

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from locallab.pool import Pool
from locallab.server import sysinfo
from locallab.server.endpoint import Endpoint
from locallab.server.errors import RETRY_AFTER
from locallab.server.metrics import Metrics
from locallab.server.reply import reply
from locallab.server.sysinfo import Build, Machine, SystemInfo, loaded_model
from locallab.tunnel import TunnelFacts
from locallab.version import __version__

SERVICE: Literal["locallab"] = "locallab"

ModelName = Annotated[str | None, Meta(description="the model that answers requests naming none; null: there is none")]


class Root(msgspec.Struct):
    service: Literal["locallab"]
    version: str
    model: ModelName


class Health(msgspec.Struct):
    status: Literal["healthy"]
    service: Literal["locallab"]
    version: str
    model: ModelName


class Ready(msgspec.Struct):
    status: Literal["ready"]
    service: Literal["locallab"]
    model: str


class Live(msgspec.Struct):
    status: Literal["alive"]
    service: Literal["locallab"]


class System:
    """The routes. `machine` and `build` tell about the machine and llama.cpp, `public_url` where the internet finds it."""

    def __init__(
        self,
        pool: Pool,
        metrics: Metrics,
        machine: Callable[[], Machine] = sysinfo.machine,
        build: Callable[[], Build] = sysinfo.build,
        public_url: Callable[[], str | None] = lambda: None,
        tunnel: Callable[[], TunnelFacts | None] = lambda: None,
    ) -> None:
        self._pool = pool
        self._metrics = metrics
        self._machine = machine
        self._build = build
        self._public_url = public_url
        self._tunnel = tunnel
        self._started = time.monotonic()

    def routes(self) -> list[BaseRoute]:
        return [
            Endpoint("/", self.root, tag="system", answer=Root),
            Endpoint("/system/info", self.info, tag="system", answer=SystemInfo),
            Endpoint("/metrics", self.metrics, tag="system", media_type="text/plain"),
            Endpoint("/health", self.health, tag="system", answer=Health),
            Endpoint("/health/ready", self.ready, tag="system", answer=Ready, errors=(503,)),
            Endpoint("/health/live", self.live, tag="system", answer=Live),
        ]

    async def root(self, request: Request) -> Response:
        """What this service is."""
        return reply(Root(SERVICE, __version__, self._current()))

    async def info(self, request: Request) -> Response:
        """The machine, the build, and the loaded models with their figures."""
        pool = self._pool
        models = {each.spec.id: loaded_model(each) for each in pool.loaded}
        return reply(
            SystemInfo(
                service=SERVICE,
                version=__version__,
                uptime_seconds=round(time.monotonic() - self._started, 3),
                public_url=self._public_url(),
                tunnel=self._tunnel(),
                process=await asyncio.to_thread(sysinfo.process),
                system=await asyncio.to_thread(self._machine),
                build=await asyncio.to_thread(self._build),
                model=models.get(self._current() or ""),
                models=list(models.values()),
                loads=pool.stats(),
            )
        )

    async def metrics(self, request: Request) -> Response:
        """Counters, gauges and histograms for Prometheus."""
        body, content_type = self._metrics.exposition(request.headers.get("accept", ""))
        return Response(body, headers={"content-type": content_type})

    async def health(self, request: Request) -> Response:
        """Whether the service is up."""
        return reply(Health("healthy", SERVICE, __version__, self._current()))

    async def ready(self, request: Request) -> Response:
        """Whether a model answers, or is brought back by the next request."""
        model = self._current() or self._resting()
        if model is not None:
            return reply(Ready("ready", SERVICE, model))
        loading = self._pool.stats().loading
        body = {"status": "not ready", "service": SERVICE, "detail": "a model is loading" if loading else "no model is loaded"}
        return reply(body, 503, {"retry-after": str(RETRY_AFTER)})

    async def live(self, request: Request) -> Response:
        """Whether the process answers."""
        return reply(Live("alive", SERVICE))

    def _current(self) -> str | None:
        current = self._pool.current
        return current.spec.id if current else None

    def _resting(self) -> str | None:
        """The model that was unloaded because nobody asked it."""
        default = self._pool.default
        return default.id if default and not self._pool.stats().loading else None
