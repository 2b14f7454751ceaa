"""Guides, which keep answers within their grammars, and the masks of the tokens that may come next."""

from __future__ import annotations

import copy
import logging
import os
import time
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
from llguidance import LLExecutor, LLMatcher

from locallab.errors import EngineFailure, InvalidField

logger = logging.getLogger(__name__)

THREADS = 4
"""Maximum masks computed at once; more would take cores from llama.cpp."""
SLOW = 0.02
"""Seconds for a step's masks from which they are computed and timed one by one."""
GRACE, PER_TOKEN = 1.0, 0.005
"""Seconds of a core that the grammar of one answer may take in all: at first, and more with each token."""


class Guide:
    """Position of one answer in its grammar. Owned by the engine's thread.

    `due` holds tokens that must come next. The matcher has consumed them already, so the answer continues with all of them
    before the guide is used again. Otherwise the next token is sampled from those that `restrict` leaves, for which `Masks`
    must have computed the mask.
    """

    def __init__(self, matcher: LLMatcher, field: str = "grammar", *, forces: bool = True) -> None:
        """Take a matcher at the start of an answer; the tokens that every answer begins with are due. `field` names the grammar
        in errors.

        If it `forces` none, nothing is ever due: for requests that forbid tokens, which must not get them unseen.
        Raises InvalidField.
        """
        self.matcher = matcher
        self.slow = False
        self._field = field
        self._allowed = GRACE
        self.mask: npt.NDArray[np.int32] | None = None
        self.due: list[int] = []
        self._forces = forces
        self._force()

    @property
    def complete(self) -> bool:
        """True when the answer, with what is due, matches its grammar and nothing can follow."""
        return self.matcher.is_stopped() and not self.matcher.is_error()

    def copy(self) -> Guide:
        """Return an independent guide at the same position."""
        other = copy.copy(self)
        other.matcher = self.matcher.deep_copy()
        return other

    def accept(self, *tokens: int) -> None:
        """Advance by `tokens` (mutates); what must follow them is due. Raises InvalidField."""
        began = time.thread_time()
        self.mask = None
        self.matcher.consume_tokens(list(tokens))
        self._check()
        self._force()
        self.spend(time.thread_time() - began - PER_TOKEN * len(tokens))

    def spend(self, seconds: float) -> None:
        """Count the time that a core has worked for this answer; what exceeds the budget ends it at the next check."""
        self._allowed -= seconds

    def take(self) -> list[int]:
        """Return the tokens that are due, and clear them."""
        due, self.due = self.due, []
        return due

    def restrict(self, logits: npt.NDArray[np.float32]) -> None:
        """Set the logits of tokens that may not come next to -inf (mutates `logits`).

        Raises InvalidField when the grammar has become too complex to follow.
        """
        self._check()
        if self.mask is None:
            raise EngineFailure("the grammar cannot be followed: the tokens that may come next could not be computed")
        bits = np.unpackbits(self.mask.view(np.uint8), count=len(logits), bitorder="little")
        np.copyto(logits, -np.inf, where=bits.view(np.bool_))

    def _force(self) -> None:
        if self._forces and not self.matcher.is_stopped():
            forced = self.matcher.compute_ff_tokens()
            # fewer where the tokenizer does not keep texts as they are
            self.due = forced[: self.matcher.validate_tokens(forced)]
            self.matcher.consume_tokens(self.due)
            self._check()

    def _check(self) -> None:
        if self.matcher.is_error():
            raise InvalidField(self._field, f"the grammar cannot be followed: {self.matcher.get_error().partition(chr(10))[0]}")
        if self._allowed < 0:
            raise InvalidField(self._field, "the grammar cannot be followed: finding the tokens that it allows takes too long")


class Masks:
    """Computes the masks of guides in threads of its own while llama.cpp computes: call `want`, `start`, then `wait`.

    Between `start` and `wait` nothing else may touch those guides. A mask has one bit per token, set if it may not come next.
    A guide whose mask cannot be computed has none afterwards; others have theirs.
    """

    def __init__(self, n_vocab: int) -> None:
        self._words = (n_vocab + 31) // 32
        self._wanted: list[Guide] = []
        self._running: list[Future[None]] = []
        self._pool: ThreadPoolExecutor | None = None
        self._executor: LLExecutor | None = None

    def want(self, guide: Guide) -> None:
        """Queue a guide for the next `start`."""
        self._wanted.append(guide)

    def start(self) -> None:
        """Start computing the masks of all queued guides; free of cost when there are none."""
        wanted, self._wanted = self._wanted, []
        if not wanted:
            return
        try:
            if self._pool is None:  # no threads before the first grammar
                self._executor = LLExecutor(max(1, min(THREADS, (os.cpu_count() or 1) // 2)))
                self._pool = ThreadPoolExecutor(1, thread_name_prefix="masks")
            self._running.append(self._pool.submit(self._compute, wanted))
        except RuntimeError:  # the system gives no more threads
            logger.exception("the masks of %d grammars cannot be computed", len(wanted))

    def wait(self) -> None:
        """Wait until all masks are computed."""
        running, self._running = self._running, []
        for job in running:
            job.result()

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def _compute(self, guides: list[Guide]) -> None:
        try:
            self._compute_together(guides)
        except Exception:
            logger.exception("the masks of %d grammars could not be computed", len(guides))
            for guide in guides if len(guides) > 1 else ():
                self._compute([guide])

    def _compute_together(self, guides: list[Guide]) -> None:
        assert self._executor is not None
        masks, began = np.empty((len(guides), self._words), np.int32), time.perf_counter()
        quick = [(guide.matcher, row) for row, guide in enumerate(guides) if not guide.slow]
        if quick:
            self._executor.unsafe_compute_mask_ptr(quick, masks.ctypes.data, 4 * self._words, len(guides))
        late = time.perf_counter() - began > SLOW
        for guide, mask in zip(guides, masks, strict=True):
            if guide.slow:
                began = time.thread_time()
                guide.matcher.unsafe_compute_mask_ptr(mask.ctypes.data, 4 * self._words)
                seconds = time.thread_time() - began
                guide.spend(seconds)
                guide.slow = seconds > SLOW / 4
            else:
                guide.slow = late
        np.invert(masks, out=masks)
        for guide, mask in zip(guides, masks, strict=True):
            guide.mask = mask
