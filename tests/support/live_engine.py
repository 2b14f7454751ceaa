"""Plain requests to a real TextEngine, and comparison with the answers of a fresh one."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from locallab.engine import SamplingParams, TextEngine, TokenEvent
from locallab.engine.adapters import AdapterFile
from locallab.engine.request import CacheUse, TokenLogprob
from locallab.settings import EngineSettings
from tests.support.wait import PATIENCE

TIE = 0.25
"""Logits nearer than this count as equal. How many tokens are computed at once changes the rounding: by up to 0.09 in the
tiny models, where one wrong token long ago changes logits by about 1."""


class Answer:
    """The listener of one request, which keeps its answer.

    With `hold` it stops the whole engine at the first token, until `release`: requests made meanwhile overlap with this one.
    """

    def __init__(self, *, hold: bool = False) -> None:
        self.tokens: list[int] = []
        self.text = ""
        self.logprobs: list[TokenLogprob] = []
        self.last: TokenEvent | None = None
        self.cache: CacheUse | None = None
        self.id = -1
        self._begun = threading.Event()
        self._ended = threading.Event()
        self._released = threading.Event()
        if not hold:
            self.release()

    def __call__(self, event: TokenEvent) -> None:
        assert self.last is None, "an event came after the last one"
        if event.cache is not None:
            self.cache = event.cache
            return
        self.tokens += event.token_ids
        self.text += event.text
        self.logprobs += event.logprobs
        if event.finish_reason:
            self.last = event
            self._ended.set()
        self._begun.set()
        assert self._released.wait(PATIENCE), "held and forgotten"

    def release(self) -> None:
        self._released.set()

    def begun(self) -> Answer:
        assert self._begun.wait(PATIENCE), "nothing came"
        return self

    def ended(self) -> Answer:
        assert self._ended.wait(PATIENCE), "no last event came"
        return self

    @property
    def reason(self) -> str:
        last = self.ended().last
        assert last is not None and last.finish_reason is not None
        return last.finish_reason

    @property
    def cached(self) -> int:
        last = self.ended().last
        assert last is not None and last.usage is not None
        return last.usage.cached_tokens


def start(engine: TextEngine, prompt: Sequence[int], n: int, *, hold: bool = False, **params: object) -> Answer:
    """Submit a greedy request for exactly `n` tokens."""
    answer = Answer(hold=hold)
    sampling = SamplingParams(temperature=0, ignore_eos=True, max_tokens=n, **params)  # type: ignore[arg-type]
    answer.id = engine.submit(prompt, sampling, answer)
    return answer


def cancel(engine: TextEngine, answer: Answer) -> None:
    """Cancel a held request after its first token."""
    engine.cancel(answer.begun().id)
    answer.release()
    assert answer.reason == "cancelled"


def ask(engine: TextEngine, prompt: Sequence[int], n: int, **params: object) -> Answer:
    """Start a request and wait for all `n` tokens."""
    answer = start(engine, prompt, n, **params).ended()
    assert answer.last is not None and answer.last.error is None, answer.last
    assert (answer.reason, len(answer.tokens)) == ("length", n)
    return answer


@contextlib.contextmanager
def running(path: Path, adapters: Sequence[AdapterFile] = (), **settings: object) -> Iterator[TextEngine]:
    """Run an engine with a context of 256 tokens, one CPU thread and no caches, unless `settings` differ."""
    defaults = {"context": 256, "parallel": 4, "threads": 1, "gpu_layers": 0, "cache_tokens": 0, "cache_ram_mib": 0}
    engine = TextEngine(path, EngineSettings(**{**defaults, **settings}), adapters=adapters)  # type: ignore[arg-type]
    try:
        yield engine
    finally:
        engine.close()


def check(
    path: Path, prompt: Sequence[int], answer: Sequence[int], adapters: Sequence[AdapterFile] = (), **params: object
) -> None:
    """Assert that an idle engine without caches and drafts gives `answer` to a request with `params`, up to ties."""
    done: list[int] = list(prompt)
    left = list(answer)
    with running(path, adapters, drafts=False) as engine:
        while left:
            expected = ask(engine, done, len(left), **params)
            assert expected.cached == 0
            same = next((i for i, (a, b) in enumerate(zip(expected.tokens, left, strict=True)) if a != b), len(left))
            done += left[:same]
            left = left[same:]
            if left:
                either = ask(engine, done, 1, logit_bias=((left[0], TIE),), **params)
                place = f"token {len(answer) - len(left)} after a prompt of {len(prompt)}"
                assert either.tokens == left[:1], f"{place} is {left[0]}, should be {expected.tokens[same]}"
                done.append(left.pop(0))


def agree(one: Answer, other: Answer) -> None:
    """Assert that two greedy answers with logprobs have the same tokens up to the first tie, behind which they may differ."""
    for ours, theirs in zip(one.logprobs, other.logprobs, strict=False):
        if ours.token != theirs.token:
            assert abs(ours.logprob - theirs.logprob) < TIE, f"{theirs.token} is no tie with {ours.token}"
            return
    assert len(one.logprobs) == len(other.logprobs)
