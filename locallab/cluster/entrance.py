"""The front of a cluster: the server's own app with all its checks, whose requests for models go to replicas."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from starlette.applications import Starlette
from starlette.middleware import Middleware

from locallab.cluster.front import Relay, Replicas
from locallab.inprocess.launch import open_pool
from locallab.keys import Keyring
from locallab.models import Registry
from locallab.server.app import create_app
from locallab.settings import ServerSettings
from locallab.tunnel import Tunnel


def naming(registry: Registry, served: Mapping[str, str]) -> Callable[[str], tuple[str, str]]:
    """Return a function that maps the name of a model in a request to the id of the one whose replicas answer, and to the name
    of the adapter, "" for none. `served` are the ids by their names in the configuration; the first answers for all others."""
    ids = dict.fromkeys(served.values())
    default = next(iter(ids))
    known = {name.lower(): id for name, id in served.items()} | {id.lower(): id for id in ids}
    known |= {alias.lower(): id for id in ids for alias in registry.get(id).aliases}

    def named(name: str) -> tuple[str, str]:
        low = name.lower()
        if low in known:
            return known[low], ""
        base, _, adapter = low.rpartition(":")
        return (known[base], adapter) if base in known else (default, "")

    return named


def front_app(
    registry: Registry,
    named: Callable[[str], tuple[str, str]],
    server: ServerSettings,
    keyring: Keyring,
    replicas: Replicas,
    tunnel: Tunnel | None = None,
) -> Starlette:
    """Return the app of a front; `named` is what `naming` returns. Raises ConfigError."""
    relay = Middleware(Relay, placement=replicas, served=named)
    return create_app(open_pool(registry, server, ()), server, keyring, tunnel, replicas, relay)
