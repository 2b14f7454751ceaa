"""Decides which states of finished sequences are saved to host RAM. Pure."""

from __future__ import annotations

from locallab.engine.cache import PrefixCache
from locallab.engine.costs import StepCosts
from locallab.engine.step_plan import Save

WORTH_SAVING = 8
"""Least tokens that host RAM does not have for which a finished sequence may be saved rather than dropped."""
SELDOM = 4
"""One in so many finished sequences is gone on with: a save must pay by that much."""


class Saving:
    """Remembers which finished sequences it has looked at. Every method but `before_loss` mutates that."""

    def __init__(self, cache: PrefixCache, costs: StepCosts) -> None:
        self._cache = cache
        self._costs = costs
        self._tried: set[int] = set()  # finished sequences that need no saving, or cannot be saved

    def next(self) -> Save | None:
        """Return a finished sequence that host RAM does not have yet, for when there is nothing else to do."""
        for slot in self._cache.finished if self._cache.capacity else ():
            if slot not in self._tried:
                self._tried.add(slot)
                if save := self._worth(slot):
                    return save
        return None

    def before_loss(self, slot: int, lost: int) -> Save | None:
        """Return the save of a sequence of which so many tokens would be lost, if host RAM does not have them and it is likely
        to pay."""
        return self._worth(slot) if self._cache.capacity and lost >= WORTH_SAVING else None

    def forget(self, slot: int) -> None:
        """Note that something else has this slot from now on."""
        self._tried.discard(slot)

    def clear(self) -> None:
        """Forget all slots."""
        self._tried.clear()

    def _worth(self, slot: int) -> Save | None:
        tokens, owner = self._cache.tokens(slot)[: self._cache.computed(slot)], self._cache.owner(slot)
        unsaved = self._cache.unsaved(tokens, owner)
        pays = unsaved >= WORTH_SAVING and self._costs.pays(len(tokens), unsaved // SELDOM)
        return Save(slot, tokens, owner) if pays else None
