"""What a request is told while its prompt is computed: its use of the prefix cache, and progress."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

from locallab.engine.cache import PrefixCache
from locallab.engine.llama import Model
from locallab.engine.request import CacheUse, Progress, TokenEvent
from locallab.engine.sequence import Sequence
from locallab.engine.step_plan import Chunk

AROUND = 16
"""Tokens on either side of a divergence that the debug log shows."""

logger = logging.getLogger(__name__)


class PromptEvents:
    """Makes the events of a prompt's steps. Used by the engine's thread."""

    def __init__(self, cache: PrefixCache, model: Model) -> None:
        self._cache = cache
        self._model = model

    def begun(self, sequence: Sequence, now: float) -> Iterator[TokenEvent]:
        """Yield what the cache had of a prompt whose first step begins, and note when; nothing if it is computed again."""
        if sequence.began is not None:
            return
        sequence.began = now
        if sequence.cache is not None:
            yield TokenEvent("", cache=sequence.cache)
            self._log_miss(sequence, sequence.cache)
        if sequence.params.progress:
            yield _progress(sequence, sequence.cached, 0.0)

    def computed(self, chunk: Chunk) -> Iterator[TokenEvent]:
        """Yield the progress of a prompt if asked for; not when it is computed again."""
        sequence = chunk.sequence
        if sequence.params.progress and sequence.began and chunk.start < sequence.n_prompt and not sequence.n_answer:
            yield _progress(sequence, sequence.computed, time.perf_counter() - sequence.began)

    def _log_miss(self, sequence: Sequence, use: CacheUse) -> None:
        """Show where a prompt left the known ones: in the log alone, since it is text of a prompt."""
        if use.reason == "diverged" and logger.isEnabledFor(logging.DEBUG):
            before, after = sequence.tokens[max(0, use.at - AROUND) : use.at], sequence.tokens[use.at : use.at + AROUND]
            known = self._cache.followers(sequence.tokens, use.at, sequence.owner)[:AROUND]
            texts = [self._model.text(token for token in tokens if token >= 0) for tokens in (before, after, known)]
            logger.debug("a prompt diverged at token %d: behind %r it has %r, a known one %r", use.at, *texts)


def _progress(sequence: Sequence, processed: int, seconds: float) -> TokenEvent:
    return TokenEvent("", progress=Progress(sequence.n_prompt, sequence.cached, processed, seconds))
