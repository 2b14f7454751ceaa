"""`locallab serve --cluster`: Ray Serve runs the replicas, and this process is the front."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import click

from locallab.cli.settings_options import Layer
from locallab.cluster import config as cluster_config
from locallab.cluster import launch
from locallab.cluster.config import ClusterConfig
from locallab.errors import ConfigError
from locallab.keys import Keyring, KeyStore, ensure_key
from locallab.settings import ServerSettings
from locallab.supervisor import Child
from locallab.version import __version__

log = logging.getLogger(__name__)


def configured(path: str, server: Sequence[Layer], engine: Mapping[str, Any]) -> tuple[ClusterConfig, ServerSettings]:
    """Return the cluster of a file and the settings of its front, in which the environment and the flags go ahead of the file.

    Raises ConfigError.
    """
    config = cluster_config.with_flags(cluster_config.read(path), engine)
    for origin, values in server:
        for name in values:
            if name in cluster_config.ELSEWHERE:
                raise ConfigError(f"{origin}: {cluster_config.ELSEWHERE[name]}")
    return config, cluster_config.server_settings(config, path, *server)


def serve(config: ClusterConfig, server: ServerSettings, child: Child, opens: bool) -> int:
    """Start the replicas, and serve in front of them until a signal; return the exit status."""
    launch.check_ray()
    registry, names = launch.check_models(config, server)
    from locallab.server import runner

    with contextlib.ExitStack() as running:
        sock = running.enter_context(contextlib.closing(child.listener or runner.bind(server.host, server.port)))
        child.bound(sock, server.max_deaths, server.log_format)
        from locallab.cluster.entrance import front_app
        from locallab.tunnel import announcement, configured_tunnel

        url = runner.url(sock)
        tunnel = configured_tunnel(server, url, lambda address: click.echo(announcement(address, first, new_key)), _complain)
        public = runner.is_public(sock) or tunnel is not None
        store = KeyStore()
        keyring = Keyring(server, store, public, restarted=bool(child.supervision.restarts))
        running.enter_context(launch.connected(config))
        launch.check_room(config, registry)
        handles = running.enter_context(launch.deployed(config, registry, server))
        from locallab.cluster.deployment import Handles

        replicas = Handles({names[model]: handle for model, handle in handles.items()})
        first = next(iter(names.values()))
        app = front_app(registry, names, server, keyring, replicas, tunnel)
        if tunnel is not None:
            running.callback(tunnel.close)
        new_key = ensure_key(server, store, keyring.public)

        def ready() -> None:
            click.echo(banner(config, url, new_key))
            if tunnel is not None:
                tunnel.start()
            child.ready()
            if opens and not child.supervision.restarts:
                import webbrowser

                threading.Thread(target=webbrowser.open, args=(url,), name="browser", daemon=True).start()

        return runner.serve(app, sock, server, ready, child.supervised)


def banner(config: ClusterConfig, url: str, new_key: str | None) -> str:
    """Return what is printed once the cluster is up."""
    models = "".join(f"\n  model    {each.model}: {_count(each)}" for each in config.models)
    key = f"\n  key      {new_key} (shown only now; `locallab keys` creates and revokes keys)" if new_key else ""
    return (
        f"LocalLab {__version__} listens on {url}, in front of a cluster{models}{key}\n\n`locallab cluster status` shows it.\n"
    )


def _count(model: cluster_config.ModelConfig) -> str:
    scaling = model.scaling
    if scaling.min == scaling.max:
        return f"{scaling.max} replica{'s' if scaling.max > 1 else ''}"
    return f"{scaling.min} to {scaling.max} replicas"


def _complain(error: Exception) -> None:
    log.error("no public address: %s", error)
