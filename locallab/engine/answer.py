"""One running answer: its sampler, its grammar, its text and stop strings, its reasoning budget, its log probabilities."""

from __future__ import annotations

import time
from collections.abc import Sequence as Seq

import numpy as np

from locallab.engine.context import Context
from locallab.engine.device_sampling import DevicePlan
from locallab.engine.grammar.guide import Guide
from locallab.engine.llama import Model
from locallab.engine.logprobs import DrawnLogprobs, Logits, Logprobs
from locallab.engine.reasoning_budget import ReasoningTracker
from locallab.engine.request import FinishReason, SamplingParams, TokenEvent, TokenLogprob
from locallab.engine.sampler import Sampler
from locallab.engine.text_stream import TextStream
from locallab.engine.token_rules import TokenRules


class Answer:
    """From the logits of a step to the answer's next tokens (`advance`) and from those to an event (`accept`).

    Made by whoever submits the request; from then on only the engine's thread uses it. Tokens that are certain before their
    logits are known, because a grammar forces them or because they close the reasoning, wait in one queue, `certain`. They
    all go out with the next step; with log probabilities one a step, since each needs logits of its own.
    """

    def __init__(
        self,
        params: SamplingParams,
        model: Model,
        guide: Guide | None = None,
        rules: TokenRules | None = None,
        device_plan: DevicePlan | None = None,
    ) -> None:
        """`rules` are those of `params`; without them these may have no text but stop strings. With a `device_plan`, tokens
        are drawn on the device."""
        self.params = params
        self.guide = guide
        self.text = TextStream(params.stop if rules is None else rules.stop, include_stop=params.include_stop)
        of_answer = DrawnLogprobs if params.drawn_logprobs else Logprobs
        self.logprobs = of_answer(params, model) if params.logprobs is not None else None
        self.certain = list(guide.take()) if guide else []
        self.device_plan = device_plan
        self._model = model
        self._rules = rules or TokenRules()
        self._n_read = 0
        self._first_read: float | None = None
        self._budget = ReasoningTracker(params.reasoning) if params.reasoning else None
        self._sampler: Sampler | None = None

    @property
    def begun(self) -> bool:
        return self._sampler is not None

    @property
    def needs_mask(self) -> bool:
        """True if `advance` samples under a grammar next: by then `Masks` must have computed the guide's mask."""
        return self.guide is not None and not self.certain

    def begin(self, prompt: Seq[int], limit: int) -> None:
        """Make the sampler and show it the prompt; `limit` is the most tokens that prompt and answer may have. Called with the
        first logits, so that a request that never gets that far costs nothing. Raises InvalidField."""
        self._sampler = Sampler(self.params, self._model, limit, self._rules)
        self._sampler.read(prompt)
        self._sampler.accept(self.certain)
        self.certain += self._closing(self.certain)

    def unscored(self, n_prompt: int) -> int:
        """Return how many tokens of a prompt of this length still need log probabilities."""
        return self.logprobs.unscored(n_prompt) if self.logprobs else 0

    def score(self, rows: Logits, tokens: Seq[int], n_prompt: int) -> None:
        """Record the log probabilities of the prompt's next tokens; `rows` are logits [outputs, n_vocab] of one chunk."""
        if self.logprobs is not None:
            for row in rows[: self.logprobs.unscored(n_prompt)]:
                self.logprobs.score(row, tokens[n_prompt - self.logprobs.unscored(n_prompt)])

    def advance(self, context: Context, logits: Logits, output: int, drawn: int | None = None) -> list[int]:
        """Return the tokens that come next: those that are certain, or one sampled from `logits`, the context's own of batch
        entry `output`, or `drawn` there on the device, and those that it makes certain. Empty when nothing may follow.

        Mutates `logits` where a grammar or the request forbids tokens. Raises InvalidField when the grammar cannot be
        followed.
        """
        assert self._sampler is not None, "begin comes first"
        if self.logprobs is not None:
            self.logprobs.see(logits)
        if not self.certain and drawn is not None:
            self._follow(drawn, self._sampler)
        elif not self.certain:
            forbidden = self._sampler.forbid(logits)
            if self.guide is not None:
                self.guide.restrict(logits)
            if forbidden and logits.max() == -np.inf:
                return []
            self._follow(self._draw(self._sampler, context, logits, output), self._sampler)
        count = 1 if self.logprobs is not None else len(self.certain)
        tokens, self.certain = self.certain[:count], self.certain[count:]
        return tokens

    def accept(self, tokens: Seq[int], logits: Logits, room: int) -> TokenEvent:
        """Return the event of `tokens`, of which the first was chosen at `logits`; it has a finish reason where they end the
        answer, and then holds only the tokens up to there. `room` is the number of tokens that the answer may still have."""
        count, text, reason = self._read(tokens, room)
        logprobs: tuple[TokenLogprob, ...] = ()
        spoken = not self._ends(tokens[0]) and (text or not self.text.stopped)
        if self.logprobs is not None and (spoken or self.params.end_logprobs):
            logprobs = (self.logprobs.describe(logits, tokens[0]),)
        return TokenEvent(text, tuple(tokens[:count]), reason, logprobs=logprobs, prompt_logprobs=self.prompt_logprobs())

    def prompt_logprobs(self) -> tuple[TokenLogprob, ...]:
        """Return the prompt's log probabilities, once: they go with the first event that has tokens."""
        return self.logprobs.take_scored() if self.logprobs is not None else ()

    def close(self) -> None:
        """Free the sampler."""
        if self._sampler is not None:
            self._sampler.close()

    def _draw(self, sampler: Sampler, context: Context, logits: Logits, output: int) -> int:
        if not isinstance(self.logprobs, DrawnLogprobs):
            return sampler.draw(context, logits, output)
        token, drawn = sampler.draw_shown(logits)
        self.logprobs.take(drawn)
        return token

    def _follow(self, token: int, sampler: Sampler) -> None:
        """Queue a sampled token and what becomes certain with it."""
        tokens = [token]
        if self.guide is not None:
            self.guide.accept(token)
            forced = self.guide.take()
            sampler.accept(forced)
            tokens += forced
        self.certain += tokens + self._closing(tokens)

    def _closing(self, tokens: Seq[int]) -> list[int]:
        """Return what closes the reasoning if `tokens` use up its budget, with what the grammar forces after that."""
        if self._budget is None or self.params.reasoning is None or self._sampler is None:
            return []
        spent = [self._budget.spend(self._piece(token)) for token in tokens]  # each token counts
        if not any(spent):
            return []
        forced = self._model.tokenize(f"\n{self.params.reasoning.end}\n\n", add_special=False, parse_special=True)
        if self.guide is not None:
            self.guide.accept(*forced)
            forced += self.guide.take()
        self._sampler.accept(forced)
        return forced

    def _read(self, tokens: Seq[int], room: int) -> tuple[int, str, FinishReason | None]:
        """Return how many of the tokens belong to the answer, their text, and the finish reason if they end it."""
        text = ""
        for count, token in enumerate(tokens, 1):
            self._n_read += 1
            ends = self._ends(token)
            new = self._feed(token, ends)
            text += new
            if ends or self.text.stopped or (count == len(tokens) and self._is_complete()):
                return count, text, "stop"
            if count >= room or self._line_is_last(new):
                return count, text, "length"
        return len(tokens), text, None

    def _feed(self, token: int, ends: bool) -> str:
        """Return the text that comes with a token; one that ends the answer has text only where stop strings are included."""
        self.text.armed = self._n_read > self.params.min_tokens
        marked = self.text.mark(self._rules.marks[token]) if token in self._rules.marks else ""
        if ends and not self.params.include_stop:
            return marked
        return marked + self.text.feed(self._piece(token))

    def _line_is_last(self, text: str) -> bool:
        """Return whether a line has ended after the time for further lines was over; the first token starts the time."""
        if not self.params.line_after_ms:
            return False
        now = time.monotonic()
        self._first_read = now if self._first_read is None else self._first_read
        return "\n" in text and now - self._first_read > self.params.line_after_ms / 1000

    def _is_complete(self) -> bool:
        return self.guide is not None and not self.certain and self.guide.complete

    def _ends(self, token: int) -> bool:
        return token in self.params.stop_token_ids or (token in self._model.end_tokens and not self.params.ignore_eos)

    def _piece(self, token: int) -> bytes:
        return self._model.name(token) if token in self.params.visible else self._model.piece(token)
