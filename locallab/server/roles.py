"""What the key of a request may do. Where no key is required, everyone may do everything."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from starlette.requests import HTTPConnection

from locallab.errors import AdminRequired, UnknownModel
from locallab.keys import Key, Role
from locallab.pool import Pool

State = Mapping[str, Any]
"""The state of a request's scope: `role` is set by `middleware.auth`."""


def role_of(key: Key | None, required: bool) -> Role:
    """Return the role of a request with this key."""
    if not required:
        return "admin"
    return key.role if key else "use"


def is_admin(request: HTTPConnection) -> bool:
    """Return whether the client may load, unload and fetch models."""
    return bool(request.scope["state"]["role"] == "admin")


def require_admin(request: HTTPConnection, doing: str) -> None:
    """Raise AdminRequired, which names what the client is `doing`, unless it may load, unload and fetch models."""
    if not is_admin(request):
        raise AdminRequired(doing)


async def check_fetch(state: State, pool: Pool, model_id: str | None) -> None:
    """Raise AdminRequired if the request would fetch weights that are not on disk, and its key may not."""
    if state["role"] == "admin" or pool.on_demand == "refuse":
        return
    try:
        spec = pool.registry.get(model_id) if model_id else pool.default
    except UnknownModel:
        spec = pool.default
    if spec is None or pool.get(spec.id) is not None or await asyncio.to_thread(pool.store.has, spec):
        return
    raise AdminRequired(f"fetching the model {spec.id!r}")
