"""The start-up that `locallab serve`, `start` and `Engine` share: settings as keyword arguments, the model, pool and app."""

from __future__ import annotations

import contextlib
import difflib
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from starlette.applications import Starlette

from locallab import cache_files, hardware, settings
from locallab.engine.llama import supports_gpu
from locallab.errors import ConfigError
from locallab.fit import Machine, unnamed
from locallab.keys import Keyring
from locallab.models import ModelSpec, Registry, Store, adhoc
from locallab.models.fetched import fetched
from locallab.pool import Pool
from locallab.server.app import create_app
from locallab.settings import EngineSettings, ServerSettings
from locallab.supervision import Supervision
from locallab.tunnel import Tunnel

log = logging.getLogger(__name__)

Layers = Sequence[tuple[str, Mapping[str, Any]]]


def open_pool(registry: Registry, server: ServerSettings, layers: Layers, supervision: Supervision | None = None) -> Pool:
    """Return a pool with nothing loaded, and remove what killed downloads left; `layers` are the configured engine settings.
    The registry gets entries for the models on disk that were fetched from the Hub by name."""
    store = Store()
    store.sweep()
    for name, _ in list(fetched(registry, store)):
        registry.resolve(name)
    return Pool(
        registry,
        store,
        layers,
        grace=server.grace,
        on_demand=server.on_demand,
        keep_alive=server.keep_alive,
        supervision=supervision,
    )


@contextlib.contextmanager
def open_app(
    registry: Registry,
    server: ServerSettings,
    layers: Layers,
    keyring: Keyring,
    tunnel: Tunnel | None,
    supervision: Supervision | None = None,
) -> Iterator[tuple[Pool, Starlette, ModelSpec]]:
    """Yield a server's pool, its app and the model to load into the pool, which is closed at the end.

    Nothing is loaded before the app is made, because that checks the settings. The model gets the configured adapters. Raises
    ConfigError, UnknownModel.
    """
    adapters = adhoc.adapters(server.lora)
    with contextlib.closing(open_pool(registry, server, layers, supervision)) as pool:
        app = create_app(pool, server, keyring, tunnel)
        warn_of_idle_gpu()
        yield pool, app, registry.adapt(choose(registry, server.model, layers, supervision and supervision.ram), adapters)


def choose(registry: Registry, name: str | None, layers: Layers, limit: int | None = None) -> ModelSpec:
    """Return the model of this name; without one, the best recommended one for this machine, which is logged with the reason.

    `layers` are the configured engine settings, `limit` the bytes of RAM that it may take. Raises ConfigError, UnknownModel.
    """
    if name:
        return registry.resolve(name)
    ram = None if limit is None else min(limit, hardware.available_memory())
    choice = unnamed(registry, Store(), Machine.here(supports_gpu(), ram), layers)
    log.info("no model is named: using %s, %s", choice.spec.id, choice.reason)
    return choice.spec


def warn_of_idle_gpu() -> None:
    """Log how to install GPU support if this machine has an unused GPU."""
    if hint := hardware.cuda_hint(supports_gpu()):
        log.warning("%s", hint)


def layers(cls: type, where: str, values: Mapping[str, Any], first: Mapping[str, Any] | None = None) -> Layers:
    """Return layers for `settings.resolve`: `first`, the environment, then those of `values` that are settings of `cls`."""
    known = {name for name, _, _ in settings.fields(cls)}
    mine = {name: value for name, value in values.items() if name in known}
    environment = [(settings.variable(name), {name: value}) for name, value in settings.environment(cls).items()]
    return [(where, first or {}), *environment, (where, mine)]


def check(where: str, values: Mapping[str, Any], *classes: type) -> None:
    """Raise ConfigError for names that are no settings of `classes`, with the nearest ones."""
    known = [name for cls in classes for name, _, _ in settings.fields(cls)]
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known)
            hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
            raise ConfigError(f"{where}: unknown setting {name!r}; {hint}")


def engine_layers(where: str, values: Mapping[str, Any], first: Mapping[str, Any] | None = None) -> Layers:
    """Return `layers` for EngineSettings, after checking the values. Raises ConfigError."""
    found = layers(EngineSettings, where, values, first)
    cache_files.check(settings.resolve(EngineSettings, *found))
    return found
