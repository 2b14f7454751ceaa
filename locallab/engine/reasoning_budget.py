"""How long a model may think: counts the tokens of its reasoning and says when they are used up. Pure."""

from __future__ import annotations

import codecs

from locallab.engine.request import ReasoningBudget


class ReasoningTracker:
    """The reasoning of one answer under a budget. An answer that begins without the opening tag has none."""

    def __init__(self, budget: ReasoningBudget) -> None:
        self._budget = budget
        self._open = budget.open
        self._over = False
        self._left = budget.tokens
        self._text = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def spend(self, data: bytes) -> bool:
        """Counts one token by its bytes. True, once: the budget is used up, so reasoning has to end now; never in the middle
        of a character."""
        if self._over:
            return False
        self._text += self._decoder.decode(data)
        if not self._open:
            self._look_for_begin()
            return False
        self._left -= 1
        if self._budget.end in self._text:
            self._over = True
        elif self._left <= 0 and not self._decoder.getstate()[0]:
            self._over = True
            return True
        self._text = self._text[-len(self._budget.end) :]
        return False

    def _look_for_begin(self) -> None:
        bare = self._text.lstrip()
        if bare.startswith(self._budget.begin):
            self._open, self._text = True, ""
        elif not self._budget.begin.startswith(bare):
            self._over = True
