"""The budget of an answer's reasoning, counted in tokens. Pure."""

from __future__ import annotations

import codecs

from locallab.engine.request import ReasoningBudget


class ReasoningTracker:
    """Counts the reasoning tokens of one answer. An answer that begins without the opening tag has no reasoning."""

    def __init__(self, budget: ReasoningBudget) -> None:
        self._budget = budget
        self._open = budget.open
        self._over = False
        self._left = budget.tokens
        self._text = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def spend(self, data: bytes) -> bool:
        """Count one token, given its bytes. Return True once, when the budget is used up and reasoning must end; never in the
        middle of a character."""
        if self._over:
            return False
        self._text += self._decoder.decode(data)
        if not self._open:
            bare = self._text.lstrip()
            if bare.startswith(self._budget.begin):
                self._open, self._text = True, ""
            elif not self._budget.begin.startswith(bare):
                self._over = True
            return False
        self._left -= 1
        if self._budget.end in self._text:
            self._over = True
        elif self._left <= 0 and not self._decoder.getstate()[0]:
            self._over = True
            return True
        self._text = self._text[-len(self._budget.end) :]
        return False
