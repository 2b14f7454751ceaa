"""The models of a cluster that runs, each an application of Ray Serve, and their changes when the configuration changes."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from ray import serve

from locallab.cluster.config import ClusterConfig, ModelConfig, read, served
from locallab.cluster.deployment import QUIET, Handles, engine, label, sleeps
from locallab.cluster.entrance import naming
from locallab.cluster.launch import check_room, reason
from locallab.errors import LocalLabError
from locallab.models import Registry
from locallab.settings import ServerSettings

LOOK = 1.0
"""Seconds from one look at the file to the next."""

log = logging.getLogger(__name__)


class Fleet:
    """Deploys models, and changes what is deployed. `handles` reaches their replicas, and `named` has which of them answers a
    request for a name."""

    def __init__(self, config: ClusterConfig, registry: Registry, server: ServerSettings) -> None:
        self.config = config
        self.handles = Handles({})
        self._registry = registry
        self._server = server
        self._deployed: dict[str, ModelConfig] = {}  # by the id in the registry
        self._named = naming(registry, served(config, registry))

    def start(self) -> None:
        """Deploy the models, and return once each has the replicas that it begins with. Raises LocalLabError if one cannot
        start."""
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        serve.start(proxy_location="Disabled", logging_config=QUIET)
        self.change(self.config)

    def change(self, config: ClusterConfig) -> None:
        """Deploy what is new or different, one model after another, and end what is gone. Replicas with other settings take the
        place of the old ones one by one, which finish their requests. Blocks. Raises ConfigError, LocalLabError; the models up
        to the one that failed are changed then."""
        ids = served(config, self._registry)
        check_room(config, self._registry)
        named = naming(self._registry, ids)
        for each in config.models:
            id = ids[each.model]
            if self._deployed.get(id) != each:
                self.handles.set(id, self._deploy(id, each, config))
                self._deployed[id] = each
        self.config, self._named = config, named
        self.handles.sleeps = sleeps(config)
        for id in self._deployed.keys() - set(ids.values()):
            self._end(id)

    def close(self) -> None:
        """End all replicas."""
        for id in list(self._deployed):
            with contextlib.suppress(Exception):
                self._end(id)

    def named(self, name: str) -> tuple[str, str]:
        """Return the id of the model that answers for this name in a request, and the adapter, "" for none."""
        return self._named(name)

    def _deploy(self, id: str, model: ModelConfig, config: ClusterConfig) -> Any:
        name = _name(id)
        self._deployed.setdefault(id, msgspec.structs.replace(model, replicas=1))  # so that it is ended even if it fails
        try:
            return serve.run(engine(model, config, self._server, "engine"), name=name, route_prefix=None)
        except RuntimeError:
            found = serve.status().applications[name].deployments["engine"].message
            raise LocalLabError(f"cluster: models: {model.model}: no replica can start: {reason(found)}") from None

    def _end(self, id: str) -> None:
        del self._deployed[id]
        self.handles.set(id, None)
        serve.delete(_name(id))


def _name(id: str) -> str:
    return f"locallab-{label(id)}"


@contextlib.contextmanager
def following(path: str, prepared: Callable[[ClusterConfig], ClusterConfig], fleet: Fleet) -> Iterator[None]:
    """Change the fleet whenever the file changes, to what `prepared` makes of its configuration; a file that is wrong changes
    nothing, which is logged."""
    ending = threading.Event()
    seen = _version(path)  # of a change that comes before the first look

    def follow() -> None:
        version = seen
        while not ending.wait(LOOK):
            if (now := _version(path)) == version:
                continue
            version = now
            try:
                config = prepared(read(path))
                if config.server != fleet.config.server or config.ray != fleet.config.ray:
                    log.warning("%s: changes of `server` and `ray` count when the cluster is started again", path)
                fleet.change(config)
                log.warning("%s has changed: the models are as it says", path)
            except LocalLabError as error:
                log.error("%s has changed, and the cluster has not: %s", path, error)
            except Exception:
                log.exception("the cluster could not be changed")

    thread = threading.Thread(target=follow, name="cluster's configuration", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join()


def _version(path: str) -> tuple[int, ...]:
    try:
        stat = os.stat(os.path.expanduser(path))
    except OSError:
        return ()
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
