"""How far a prompt is read, told by the real worker on a tiny model."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from locallab.engine import SamplingParams, TextEngine, TokenEvent
from tests.support import tiny_gguf
from tests.support.live_engine import Answer, running

PROMPT = [tiny_gguf.BOS, *(100 + i % 90 for i in range(299))]


class Told(Answer):
    """Keeps the events too."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[TokenEvent] = []

    def __call__(self, event: TokenEvent) -> None:
        self.events.append(event)
        super().__call__(event)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TextEngine]:
    path = tiny_gguf.write(tmp_path_factory.mktemp("models") / "tiny.gguf", "llama")
    with running(path, context=512, batch=64, kv_tokens=2048, cache_tokens=1024) as engine:
        yield engine


def ask(engine: TextEngine, *, progress: bool = True) -> Told:
    told = Told()
    engine.submit(PROMPT, SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, progress=progress), told)
    told.ended()
    return told


def test_the_beginning_and_each_step_tell_and_the_last_one_has_read_all(engine: TextEngine) -> None:
    first, again = ask(engine), ask(engine)
    for told, cached in ((first, 0), (again, len(PROMPT) - 1)):
        steps = [event.progress for event in told.events if event.progress is not None]
        assert [each.total for each in steps] == [len(PROMPT)] * len(steps)
        assert {each.cached for each in steps} == {cached}
        done = [each.processed for each in steps]
        assert done == sorted(set(done)) and done[0] == cached and done[-1] == len(PROMPT)
        assert steps[0].seconds == 0.0
        assert all(before.seconds <= after.seconds for before, after in itertools.pairwise(steps))
        assert told.events[0].cache and told.events[0].cache.hit == cached
        kinds = [event.progress is None for event in told.events[1:]]
        assert kinds == sorted(kinds), "progress after the first token"
        assert len(told.tokens) == 4
    assert len([event for event in first.events if event.progress]) >= len(PROMPT) // 64


def test_nobody_is_told_who_does_not_ask(engine: TextEngine) -> None:
    assert all(event.progress is None for event in ask(engine, progress=False).events)
