"""How the models of a pool fit the machine that it is on."""

from __future__ import annotations

from locallab.fit import Fitting
from locallab.pool.pool import Pool

__all__ = ["Fitting", "fitting"]


def fitting(pool: Pool) -> Fitting:
    """Return how models fit if all that are loaded make room, as the load of another one may ask of them. Blocks: it measures
    the memory of this machine."""
    return Fitting(pool.registry, pool.store, pool.memory.machine(pool.held()), pool.layers)
