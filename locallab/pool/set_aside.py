"""The models whose load has ended an earlier server: a request does not load them again, only an explicit load does."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

from locallab import supervision
from locallab.errors import ModelSetAside

SHORTEST = 10
"""Seconds after which a client may ask again for a model that somebody may have loaded meanwhile."""


class SetAside:
    """The models by id, each with what happened. Used under the pool's lock."""

    def __init__(self, models: Mapping[str, supervision.SetAside]) -> None:
        self._models = dict(models)

    @property
    def reasons(self) -> dict[str, str]:
        return {id: each.reason for id, each in self._models.items()}

    def refuse(self, id: str) -> None:
        """Raise ModelSetAside if a request names a model that is set aside."""
        if (found := self._models.get(id)) is not None:
            left = found.until - time.monotonic()
            raise ModelSetAside(id, f"{found.reason}; POST /models/load tries it again", max(SHORTEST, math.ceil(left)))

    def check(self, id: str) -> None:
        """Raise ModelSetAside if it is too soon to load the model again: deaths in a row end the supervisor too."""
        found = self._models.get(id)
        if found is not None and (left := found.until - time.monotonic()) > 0:
            raise ModelSetAside(id, f"{found.reason}; it may be tried again in {left:.0f} s", math.ceil(left))

    def forget(self, id: str) -> None:
        self._models.pop(id, None)
