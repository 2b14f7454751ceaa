"""Holds one answer to its language: which tokens may come next, which must. Owned by the engine's thread."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
from llguidance import LLExecutor, LLMatcher

from locallab.errors import EngineFailure

THREADS = 4
"""Masks computed at once at most; more would take cores from llama.cpp."""


class Guide:
    """Where one answer is in its language.

    `due` are tokens that must come next and that the guide counts as said already: the answer goes on with all of them before
    anything else is asked. Otherwise a token is drawn from what `restrict` leaves, after `Masks` has worked out what that is.
    """

    def __init__(self, matcher: LLMatcher) -> None:
        """Takes a matcher at the beginning of an answer, and finds what every answer begins with. Raises EngineFailure."""
        self.matcher = matcher
        self.mask: npt.NDArray[np.int32] | None = None
        self.due: list[int] = []
        self._force()

    @property
    def complete(self) -> bool:
        """Whether the answer, with what is due, is as it must be and nothing can follow."""
        return self.matcher.is_stopped() and not self.matcher.is_error()

    def copy(self) -> Guide:
        """Another one at the same place."""
        other = copy.copy(self)
        other.matcher = self.matcher.deep_copy()
        return other

    def accept(self, *tokens: int) -> None:
        """Mutates: the answer goes on with `tokens`; then what must follow them is due."""
        self.mask = None
        self.matcher.consume_tokens(list(tokens))
        self._check()
        self._force()

    def take(self) -> list[int]:
        """Mutates: what is due, to be said now."""
        due, self.due = self.due, []
        return due

    def restrict(self, logits: npt.NDArray[np.float32], banned: Sequence[int]) -> bool:
        """Makes every token impossible that may not come next, and those of `banned`. False: none is left, only to end.

        Raises EngineFailure when the grammar has become too complex to be followed.
        """
        self._check()
        assert self.mask is not None, "Masks has not been asked"
        bits = np.unpackbits(self.mask.view(np.uint8), count=len(logits), bitorder="little")
        np.copyto(logits, -np.inf, where=bits.view(np.bool_))
        if not banned:
            return True
        logits[banned] = -np.inf
        return bool(logits.max() > -np.inf)

    def _force(self) -> None:
        """A tokenizer that does not give back the text it was given finds tokens that the grammar does not take."""
        if not self.matcher.is_stopped():
            forced = self.matcher.compute_ff_tokens()
            self.due = forced[: self.matcher.validate_tokens(forced)]
            self.matcher.consume_tokens(self.due)
            self._check()

    def _check(self) -> None:
        if self.matcher.is_error():
            raise EngineFailure(f"the grammar cannot be followed: {self.matcher.get_error().partition(chr(10))[0]}")


class Masks:
    """Works out what guides allow next, in threads of its own while llama.cpp computes: `want`, `start`, and then `wait`.

    Between `start` and `wait` nobody else may touch those guides. A mask has a bit for each token, set where it may not come.
    """

    def __init__(self, n_vocab: int) -> None:
        self._words = (n_vocab + 31) // 32
        self._wanted: list[Guide] = []
        self._running: list[Future[None]] = []
        self._pool: ThreadPoolExecutor | None = None
        self._executor: LLExecutor | None = None

    def want(self, guide: Guide) -> None:
        self._wanted.append(guide)

    def start(self) -> None:
        """Begins with all that are wanted; costs nothing when there are none."""
        if self._wanted:
            if self._pool is None:  # threads only for those who need them
                self._pool = ThreadPoolExecutor(1, thread_name_prefix="masks")
                self._executor = LLExecutor(max(1, min(THREADS, (os.cpu_count() or 1) // 2)))
            self._running.append(self._pool.submit(self._compute, self._wanted))
            self._wanted = []

    def wait(self) -> None:
        """Returns when all masks are there."""
        running, self._running = self._running, []
        for job in running:
            job.result()

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def _compute(self, guides: list[Guide]) -> None:
        assert self._executor is not None
        masks = np.empty((len(guides), self._words), np.int32)
        matchers = [(guide.matcher, row) for row, guide in enumerate(guides)]
        self._executor.unsafe_compute_mask_ptr(matchers, masks.ctypes.data, 4 * self._words, len(guides))
        np.invert(masks, out=masks)
        for guide, mask in zip(guides, masks, strict=True):
            guide.mask = mask
