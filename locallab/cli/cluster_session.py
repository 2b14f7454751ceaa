"""`locallab serve --cluster`: Ray Serve runs the replicas, and this process is the front."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import click

from locallab.cli.settings_options import Layer
from locallab.cluster import config as configs
from locallab.cluster import launch
from locallab.cluster.config import ClusterConfig, ModelConfig
from locallab.errors import ConfigError
from locallab.keys import Keyring, KeyStore, ensure_key, with_key_file
from locallab.models import Registry
from locallab.settings import ServerSettings
from locallab.supervisor import Child
from locallab.version import __version__

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Session:
    """A cluster to start: its file, what that says, the engine settings that go ahead of it, and the settings of the front."""

    path: str
    config: ClusterConfig
    engine: Mapping[str, Any]
    server: ServerSettings

    def prepared(self, config: ClusterConfig) -> ClusterConfig:
        """Return a configuration with the engine settings of this session."""
        return configs.with_flags(config, self.engine)


def session(path: str, server: Sequence[Layer], engine: Mapping[str, Any]) -> Session:
    """Return the cluster of a file. The environment and the flags go ahead of it. Raises ConfigError."""
    config = configs.read(path)
    for origin, values in server:
        for name in values:
            if name in configs.ELSEWHERE:
                raise ConfigError(f"{origin}: {configs.ELSEWHERE[name]}")
    return Session(
        path, configs.with_flags(config, engine), engine, with_key_file(configs.server_settings(config, path, *server))
    )


def serve(session: Session, child: Child, opens: bool) -> int:
    """Start the replicas, and serve in front of them until a signal; return the exit status."""
    config, server = session.config, session.server
    launch.check_ray()
    registry = Registry.discover(server.registry)
    first = next(iter(configs.served(config, registry).values()))
    from locallab.server import listener, runner, tls

    certificates = tls.configured(server)
    with contextlib.ExitStack() as running:
        sock = running.enter_context(listener.opened(server, child.listener))
        child.bound(sock, server.max_deaths, server.log_format)
        from locallab.cluster.entrance import front_app
        from locallab.tunnel import announcement, configured_tunnel

        url = listener.url(sock, certificates is not None)
        shown = listener.url(sock, True, certificates.name) if certificates else url
        tunnel = configured_tunnel(server, url, lambda address: click.echo(announcement(address, first, new_key)), _complain)
        public = listener.is_public(sock) or tunnel is not None
        store = KeyStore()
        keyring = Keyring(server, store, public, restarted=bool(child.supervision.restarts))
        running.callback(keyring.close)
        running.enter_context(launch.connected(config))
        from locallab.cluster.fleet import Fleet, following

        fleet = Fleet(config, registry, server)
        running.callback(fleet.close)
        fleet.start()
        app = front_app(registry, fleet.named, server, keyring, fleet.handles, tunnel)
        running.enter_context(following(session.path, session.prepared, fleet))
        if tunnel is not None:
            running.callback(tunnel.close)
        new_key = ensure_key(server, store, keyring.public)
        keyring.reload()

        def ready() -> None:
            click.echo(banner(config, shown, new_key))
            if tunnel is not None:
                tunnel.start()
            child.ready()
            if opens and not child.supervision.restarts:
                import webbrowser

                threading.Thread(target=webbrowser.open, args=(shown,), name="browser", daemon=True).start()

        return runner.serve(app, sock, server, ready, child.supervised)


def banner(config: ClusterConfig, url: str, new_key: str | None) -> str:
    """Return what is printed once the cluster is up."""
    models = "".join(f"\n  model    {each.model}: {_count(each)}" for each in config.models)
    key = f"\n  key      {new_key} (shown only now; `locallab keys` creates and revokes keys)" if new_key else ""
    return (
        f"LocalLab {__version__} listens on {url}, in front of a cluster{models}{key}\n\n`locallab cluster status` shows it.\n"
    )


def _count(model: ModelConfig) -> str:
    scaling = model.scaling
    if scaling.min == scaling.max:
        return f"{scaling.max} replica{'s' if scaling.max > 1 else ''}"
    return f"{scaling.min} to {scaling.max} replicas"


def _complain(error: Exception) -> None:
    log.error("no public address: %s", error)
