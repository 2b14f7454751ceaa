"""The whole cluster as one application of Ray Serve, whose ingress is the front."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from typing import Any

import msgspec
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.applications import Starlette

from locallab import logs
from locallab.cluster.config import ClusterConfig, as_dict, parse, served, server_settings
from locallab.cluster.deployment import QUIET, Handles, engine, label, sleeps
from locallab.cluster.entrance import front_app, naming
from locallab.inprocess.launch import layers
from locallab.keys import Keyring, KeyStore, with_key_file
from locallab.models import Registry
from locallab.settings import ServerSettings

FRONT_REQUESTS = 1000
"""Requests that a front may have under way."""

log = logging.getLogger(__name__)


def application(config: ClusterConfig, where: str) -> serve.Application:
    """Return the application. Raises ConfigError, UnknownModel."""
    config = msgspec.structs.replace(config, ray=config.ray or "auto")  # replicas may be on any machine
    server = _settings(config, where)
    ids = served(config, Registry.discover(server.registry))
    engines = {ids[each.model]: engine(each, config, server, label(ids[each.model])) for each in config.models}
    front = serve.deployment(serve.ingress()(Front)).options(
        name="front",
        num_replicas=config.fronts,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=FRONT_REQUESTS,
        graceful_shutdown_timeout_s=server.grace,
        logging_config=QUIET,
    )
    return front.bind(as_dict(config), engines)


class Front:
    """A process that checks requests, and gives them to replicas. Ray Serve's proxies listen for it: other machines may reach
    it, so that it needs keys, unless the configuration has `auth: false`."""

    def __init__(self, config: Mapping[str, Any], engines: Mapping[str, DeploymentHandle]) -> None:
        cluster = parse(config, "the cluster's configuration")
        server = with_key_file(_settings(cluster, "the cluster's configuration"))
        self._ending = contextlib.ExitStack()
        self._ending.enter_context(logs.configured(server.log_level, server.log_format))
        keyring = Keyring(server, KeyStore(), public=True)
        if server.auth and keyring.readable and not keyring.any:
            log.warning("there is no API key, so that nobody can use this: `locallab keys create --name NAME` makes one")
        handles = Handles(engines)
        handles.sleeps = sleeps(cluster)
        registry = Registry.discover(server.registry)
        self._asgi = front_app(registry, naming(registry, served(cluster, registry)), server, keyring, handles)

    def __serve_build_asgi_app__(self) -> Starlette:
        return self._asgi


def _settings(config: ClusterConfig, where: str) -> ServerSettings:
    return server_settings(config, where, *layers(ServerSettings, where, {}))
