"""The start and the end of a cluster that `locallab serve --cluster` runs, and what is checked before anything is started."""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import os
import socket
from collections.abc import Iterator, Mapping

from locallab.cluster.config import ClusterConfig
from locallab.errors import ConfigError
from locallab.models import Registry, Store
from locallab.units import binary_bytes

OLDEST, BEYOND = (2, 60), (3,)
"""Versions of Ray from the first on, and below the second."""

REACHING = 5.0
"""Seconds to connect to a Ray cluster."""

log = logging.getLogger(__name__)


def check_ray() -> None:
    """Raise ConfigError unless there is a Ray of a version that is known to work."""
    wanted = f"a cluster needs Ray {'.'.join(map(str, OLDEST))} or later, below {BEYOND[0]}: pip install 'locallab-server[ray]'"
    try:
        version = importlib.metadata.version("ray")
        importlib.metadata.version("fastapi")  # of the extra `serve`
    except importlib.metadata.PackageNotFoundError as error:
        raise ConfigError(f"cluster: {error.name} is not installed; {wanted}") from None
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    if not OLDEST <= numbers < BEYOND:
        raise ConfigError(f"cluster: Ray {version} is installed; {wanted}")


@contextlib.contextmanager
def connected(config: ClusterConfig) -> Iterator[None]:
    """Connect to the configured Ray cluster, or start one on this machine, which ends with the block. Raises ConfigError."""
    check_ray()
    if config.ray is not None:
        _check_address(config.ray)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent away
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # CPU replicas keep their view of the GPUs
    import ray

    options = {} if config.ray is not None else {"include_dashboard": False}
    try:
        ray.init(config.ray, logging_level=logging.ERROR, log_to_driver=True, namespace="locallab", **options)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise ConfigError(f"cluster: ray: {config.ray or 'none can be started here'}: {_first(error)}") from None
    try:
        yield
    finally:
        ray.shutdown()


def check_room(config: ClusterConfig, registry: Registry) -> None:
    """Raise ConfigError for a model of which no machine of the connected cluster can hold a replica."""
    import ray

    nodes = [each["Resources"] for each in ray.nodes() if each["Alive"]]
    store = Store()
    for each in config.models:
        spec = registry.resolve(each.model)
        size = store.size(spec) or 0
        needs = {"CPU": each.cpus, "GPU": each.gpus, "memory": max(each.memory_gib * 2**30, 0 if each.gpus else size)}
        room = sum(_replicas(node, needs) for node in nodes)
        if room >= max(1, each.scaling.min):
            continue
        if room:
            raise ConfigError(
                f"cluster: models: {each.model}: replicas: there is room for {room} of {each.scaling.min}; each takes"
                f" {' and '.join(_amount(name, amount) for name, amount in needs.items() if amount)} of a machine"
            )
        most = {name: max((node.get(name, 0) for node in nodes), default=0) for name in needs}
        lacking = [name for name, amount in needs.items() if most[name] < amount]
        shown = " and ".join(_amount(name, needs[name]) for name in lacking or needs)
        there = (
            f"the largest has {' and '.join(_amount(name, most[name]) for name in lacking)}" if lacking else "each lacks one"
        )
        raise ConfigError(f"cluster: models: {each.model}: no machine can hold a replica, which takes {shown}; {there}")


def _replicas(node: Mapping[str, float], needs: Mapping[str, float]) -> int:
    """Return how many replicas a machine can hold, by itself."""
    return min((int(node.get(name, 0) // amount) for name, amount in needs.items() if amount), default=1000)


def _amount(name: str, amount: float) -> str:
    return f"{binary_bytes(int(amount))} of memory" if name == "memory" else f"{amount:g} {name}s"


def reason(message: str) -> str:
    """Return the words of the exception that a message of Ray Serve's ends with."""
    lines = [line.strip() for line in message.splitlines() if line.strip()] or ["the log says why"]
    kind, _, told = next((line for line in reversed(lines) if ": " in line), lines[-1]).partition(": ")
    return told if kind.endswith(("Error", "Exception")) or "." in kind else lines[-1]


def _check_address(address: str) -> None:
    """Raise ConfigError where nothing listens at an address: Ray would wait for a minute. Other forms are for Ray to check."""
    host, _, port = address.rpartition(":")
    if not host or "/" in address or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), REACHING).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"cluster: ray: nothing answers at {address}: {reason}; `ray start --head` starts a cluster"
        ) from None


def _first(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
