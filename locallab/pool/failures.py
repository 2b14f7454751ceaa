"""The models that have failed: a load has, or the engine has ended by an error. Requests load them again, in time."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Mapping

from locallab.errors import EngineDied, LocalLabError

CALM = 300.0
"""Seconds of life after which the end of an engine is not counted with those before it."""
LONGEST = 60
"""Seconds of waiting at most."""

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class _Death:
    """What ended the engine, as which in a row, and when the model may be loaded again (time.monotonic)."""

    reason: str
    count: int
    until: float


class Failures:
    """What has failed last, by model. Used under the pool's lock.

    After the first end of its engine a model is loaded again at once; after more of them in a row when 2, 4, 8, ... seconds
    have passed.
    """

    def __init__(self, reasons: Mapping[str, str]) -> None:
        self.reasons = dict(reasons)
        self._deaths: dict[str, _Death] = {}

    def load(self, id: str, error: Exception) -> None:
        """Note that a load has failed."""
        expected = isinstance(error, LocalLabError)
        log.warning("%s could not be loaded: %s", id, error, exc_info=None if expected else error)
        self.reasons[id] = str(error) if expected else f"internal error: {error!r}"

    def death(self, id: str, error: EngineDied, lived: float) -> None:
        """Note that the engine of a model has ended after so many seconds."""
        log.error("%s has failed, and is loaded again when it is asked for: %s", id, error.reason)
        self.reasons[id] = str(error)
        before = self._deaths[id].count if id in self._deaths and lived < CALM else 0
        wait = min(LONGEST, 2**before) if before else 0
        self._deaths[id] = _Death(error.reason, before + 1, time.monotonic() + wait)

    def forget(self, id: str) -> None:
        """Note that a model has been loaded. How often its engine has ended is remembered."""
        self.reasons.pop(id, None)

    def check(self, id: str) -> None:
        """Raise EngineDied if a request has to wait before it loads the model again."""
        death = self._deaths.get(id)
        if id in self.reasons and death is not None and (left := death.until - time.monotonic()) > 0:
            raise EngineDied(death.reason, math.ceil(left))
