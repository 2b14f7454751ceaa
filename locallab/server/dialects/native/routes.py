"""The dialect of LocalLab's own routes."""

from __future__ import annotations

from typing import Any

from starlette.routing import BaseRoute

from locallab.server.dialects.answer_fields import Problem
from locallab.server.dialects.dialect import Dialect, Services
from locallab.server.dialects.native.activity import Sampler
from locallab.server.dialects.native.events import Events
from locallab.server.dialects.native.generate import Native
from locallab.server.dialects.native.metrics import Metrics
from locallab.server.dialects.native.models import Models
from locallab.server.dialects.native.replay import Replay
from locallab.server.dialects.native.replica_activity import ClusterSampler
from locallab.server.dialects.native.system import System
from locallab.server.dialects.native.usage import UsageRoute
from locallab.server.errors import detail_body


def routes(services: Services) -> list[BaseRoute]:
    pool, tunnel = services.pool, services.tunnel
    metrics = Metrics(pool, services.traffic, services.usage)
    cluster = services.cluster
    public: Any = {"public_url": lambda: tunnel.url, "tunnel": tunnel.facts} if tunnel else {}
    system = System(pool, metrics, cluster=cluster, **public)
    usage = UsageRoute(services.usage)
    events = Events(ClusterSampler(pool, cluster) if cluster else Sampler(pool), services.keyring)
    groups = (Native(pool, services.settings), Models(pool), usage, events, Replay(services.keyring), system)
    return [route for group in groups for route in group.routes()]


NATIVE = Dialect(
    name="native",
    prefixes=(
        "",
        "/models/current",
        "/models/available",
        "/models/load",
        "/models/unload",
        "/models/status",
        "/models/fit",
        "/api/v1/events",
        "/api/v1/me",
        "/api/v1/render",
    ),
    error_body=detail_body,
    problem=Problem,
    routes=routes,
    tags={
        "native": "Text and chat, in LocalLab's own shape.",
        "models": "The registered models, and which are loaded.",
        "system": "The machine and the service.",
    },
    areas={
        "/": "open",
        "/health": "open",
        "/docs": "open",
        "/page": "open",
        "/openapi.json": "open",
        "/metrics": "uncounted",  # it shows the activity of others, so it needs a key where keys are required
        "/api/v1/events": "uncounted",  # as does this one
        "/api/v1/me": "uncounted",  # the page asks for these: the second many times for each answer
        "/api/v1/render": "uncounted",
        "/generate": "native",
        "/chat": "native",
        "/models": "native",
        "/system": "native",
    },
)
