"""One request's state in the engine: what is known, what is computed, where it lies."""

from __future__ import annotations

import dataclasses
import time

from locallab.engine.grammar.guide import Guide
from locallab.engine.logprobs import Logprobs
from locallab.engine.reasoning_budget import Thinking
from locallab.engine.request import FinishReason, Listener, SamplingParams, Usage
from locallab.engine.text_stream import TextStream

UNPLACED = -1


@dataclasses.dataclass(eq=False, slots=True)
class Sequence:
    """Known tokens (prompt, then answer) of which the first `computed` have their KV in the llama sequence `slot`.

    `limit` is the length at which the answer ends: by max_tokens or by the context. `guide` holds the answer to a language,
    `thinking` its reasoning to a budget. `logprobs` are told if they are asked for. An `urgent` one goes ahead of others.
    `submitted`, `began` and `last_token` are when it was made, when the first step that reads its prompt began, if progress is
    told, and when its last token was drawn (time.perf_counter).
    """

    id: int
    tokens: list[int]
    n_prompt: int
    limit: int
    params: SamplingParams
    listener: Listener
    text: TextStream
    guide: Guide | None = None
    thinking: Thinking | None = None
    logprobs: Logprobs | None = None
    urgent: bool = False
    computed: int = 0
    slot: int = UNPLACED
    cached: int = 0
    finish_reason: FinishReason | None = None
    submitted: float = dataclasses.field(default_factory=time.perf_counter)
    began: float | None = None
    last_token: float | None = None

    @property
    def n_answer(self) -> int:
        return len(self.tokens) - self.n_prompt

    @property
    def pending(self) -> int:
        """Tokens that are known but not computed: 1 while decoding, more when a grammar forced some, or while its prompt (or
        what was preempted) is due."""
        return len(self.tokens) - self.computed

    @property
    def complete(self) -> bool:
        """Whether its grammar lets nothing follow what is said."""
        return self.guide is not None and not (self.logprobs and self.logprobs.due) and self.guide.complete

    @property
    def unscored(self) -> int:
        """Tokens of the prompt whose logprobs are wanted and not known yet."""
        return self.logprobs.unscored(self.n_prompt) if self.logprobs else 0

    @property
    def usage(self) -> Usage:
        return Usage(self.n_prompt, self.n_answer, self.cached)
