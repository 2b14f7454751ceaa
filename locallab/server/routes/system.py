"""The machine and the service: /, /system/info, /health."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from locallab import __version__, hardware
from locallab.engine import build_features
from locallab.pool import Pool
from locallab.server.endpoint import Endpoint
from locallab.server.errors import RETRY_AFTER
from locallab.server.modelinfo import figures
from locallab.server.reply import reply

SERVICE = "locallab"


class System:
    """The routes. `facts` and `features` tell about the machine and about llama.cpp's build."""

    def __init__(
        self,
        pool: Pool,
        facts: Callable[[], dict[str, Any]] = hardware.facts,
        features: Callable[[], dict[str, Any]] = build_features,
    ) -> None:
        self._pool = pool
        self._facts = facts
        self._features = features
        self._started = time.monotonic()

    def routes(self) -> list[BaseRoute]:
        return [
            Endpoint("/", self.root, tag="system"),
            Endpoint("/system/info", self.info, tag="system"),
            Endpoint("/health", self.health, tag="system"),
            Endpoint("/health/ready", self.ready, tag="system", errors=(503,)),
            Endpoint("/health/live", self.live, tag="system"),
        ]

    async def root(self, request: Request) -> Response:
        """What this service is."""
        current = self._pool.current
        return reply({"service": SERVICE, "version": __version__, "model": current and current.spec.id})

    async def info(self, request: Request) -> Response:
        """The machine, the build, and the loaded models with their figures."""
        current = self._pool.current
        stats = {"stats": dataclasses.asdict(current.engine.stats())} if current else {}
        return reply(
            {
                "service": SERVICE,
                "version": __version__,
                "uptime_seconds": round(time.monotonic() - self._started, 3),
                "system": await asyncio.to_thread(self._facts),
                "build": await asyncio.to_thread(self._features),
                "model": {**figures(self._pool, current), **stats} if current else None,
            }
        )

    async def health(self, request: Request) -> Response:
        """Whether the service is up."""
        current = self._pool.current
        return reply({"status": "healthy", "service": SERVICE, "version": __version__, "model": current and current.spec.id})

    async def ready(self, request: Request) -> Response:
        """Whether a model answers."""
        current = self._pool.current
        if current is None:
            return reply({"status": "not ready", "service": SERVICE}, 503, {"retry-after": str(RETRY_AFTER)})
        return reply({"status": "ready", "service": SERVICE, "model": current.spec.id})

    async def live(self, request: Request) -> Response:
        """Whether the process answers."""
        return reply({"status": "alive", "service": SERVICE})
