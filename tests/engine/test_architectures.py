"""What may be reused of earlier requests differs by architecture; the answers may not. The real engine, tiny models."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import pytest

from locallab.engine import text_engine
from locallab.engine.costs import StepCosts
from locallab.engine.limits import Limits
from locallab.engine.scheduler import Scheduler
from tests.support import tiny_gguf
from tests.support.live_engine import ask, cancel, check, running, start

ANY_PREFIX = ("llama", "qwen2vl")


@pytest.fixture(scope="module", params=tiny_gguf.ARCHITECTURES)
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf.write(tmp_path_factory.mktemp("models") / f"{request.param}.gguf", request.param)


each_layout = pytest.mark.parametrize("layout", ["unified", "streams"])


@pytest.fixture(autouse=True)
def restores_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny models compute a prompt about as fast as its state is put back; which is faster differs between runs."""
    monkeypatch.setattr(StepCosts, "pays", lambda *_: True)


def words(seed: int, n: int) -> list[int]:
    """Some `n` token ids."""
    chosen = random.Random(seed)
    return [chosen.randrange(tiny_gguf.FIRST_PLAIN, tiny_gguf.N_VOCAB) for _ in range(n)]


def reuses_any_prefix(path: Path) -> bool:
    return path.stem in ANY_PREFIX


def test_the_kind_of_memory_is_detected(path: Path) -> None:
    with running(path) as engine:
        assert engine.info.architecture == tiny_gguf.ARCHITECTURES[path.stem]
        assert engine.info.reuse == ("prefix" if reuses_any_prefix(path) else "snapshots")
        assert (engine.info.n_vocab, engine.info.n_ctx_train) == (tiny_gguf.N_VOCAB, tiny_gguf.CONTEXT)
        assert (engine.info.bos, engine.info.eos) == ("<s>", "</s>")


def test_the_tiny_models_are_worth_asking(path: Path) -> None:
    """Their answers vary, and change with a single token of the prompt, well before its end."""
    prompt = words(1, 60)
    with running(path) as engine:
        answer = ask(engine, prompt, 40).tokens
        assert len(set(answer)) >= 15
        others = [ask(engine, [*prompt[:45], token, *prompt[46:]], 40).tokens for token in words(2, 4)]
    assert all(other != answer for other in others)
    for other in others:
        with pytest.raises(AssertionError, match="should be"):
            check(path, prompt, other)


@each_layout
@pytest.mark.parametrize("ram", [0, 64])
def test_a_whole_sequence_is_continued_everywhere(path: Path, layout: str, ram: int) -> None:
    """A conversation of several turns, which grows far beyond the window."""
    prompt = words(3, 20)
    cached = 0
    with running(path, kv_layout=layout, cache_tokens=512, cache_ram_mib=ram) as engine:
        for turn in range(5):
            answer = ask(engine, prompt, 16)
            assert answer.cached == cached
            check(path, prompt, answer.tokens)
            whole = prompt + answer.tokens[:-1]
            cached = len(whole)
            prompt = whole + words(40 + turn, 8)


@each_layout
@pytest.mark.parametrize("shared", [1, 17, 40, 59, 60, 70])
@pytest.mark.parametrize("ram", [0, 64])
def test_a_prompt_that_leaves_a_longer_sequence(path: Path, layout: str, shared: int, ram: int) -> None:
    """The cached sequence has 60 prompt tokens and 23 of an answer; the next prompt has its first `shared` tokens.

    A state that cannot be cut is kept before the last token of the prompt. A stream is cut for the next prompt.
    """
    cuts = reuses_any_prefix(path)
    prompt = words(5, 60)
    with running(path, kv_layout=layout, cache_tokens=512, cache_ram_mib=ram) as engine:
        first = ask(engine, prompt, 24)
        sequence = prompt + first.tokens[:-1]
        other = [token for token in words(6, 20) if token != sequence[shared]]
        changed = sequence[:shared] + other
        answer = ask(engine, changed, 24)
        before_last = len(prompt) - 1
        assert answer.cached == (shared if cuts else before_last if ram and shared >= before_last else 0)
        again = ask(engine, prompt, 24)
        lost = layout == "streams" and not ram
        assert again.cached == (min(shared, before_last) if cuts and lost else before_last if cuts or ram else 0)
    check(path, changed, answer.tokens)
    check(path, prompt, again.tokens)


def revisit_an_old_sequence(path: Path) -> int:
    """Asks for what a long sequence began with, after others have come into the cells that its window has left behind.

    Returns how many tokens were taken from the cache.
    """
    prompt = words(9, 60)
    with running(path, kv_tokens=256, cache_tokens=200) as engine:
        long = start(engine, prompt, 100, hold=True)
        others = [start(engine, words(100 + i, 10), 6) for i in range(16)]
        long.release()  # not before: it must end last, or the others evict it from the cache
        for other in others:
            assert other.reason == "length"
        assert long.reason == "length"
        changed = prompt[:40] + words(10, 1)
        answer = ask(engine, changed, 24)
        check(path, changed, answer.tokens)
    check(path, prompt, long.tokens)
    return answer.cached


def test_the_window_has_moved_on(path: Path) -> None:
    assert revisit_an_old_sequence(path) == (40 if reuses_any_prefix(path) else 0)


@pytest.mark.parametrize("architecture", [name for name in tiny_gguf.ARCHITECTURES if name not in ANY_PREFIX])
def test_these_tests_notice_wrong_reuse(architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were these models taken for ones with full attention, the answers would be wrong, or none."""

    def misled(limits: Limits, *others: object) -> Scheduler:
        return Scheduler(dataclasses.replace(limits, cuts=True), *others)  # type: ignore[arg-type]

    monkeypatch.setattr(text_engine, "Scheduler", misled)
    with pytest.raises(AssertionError, match=r"should be|EngineFailure|InvalidBatch"):
        revisit_an_old_sequence(tiny_gguf.write(tmp_path / f"{architecture}.gguf", architecture))


@each_layout
@pytest.mark.parametrize("ram", [0, 64])
def test_requests_at_once(path: Path, layout: str, ram: int) -> None:
    """Two rounds of requests that begin alike, more than run at once; one is cancelled before it begins, one while it runs."""
    common = words(11, 30)
    prompts = [common[: 5 * i] + words(20 + i, 12) for i in range(7)]
    with running(path, kv_layout=layout, cache_tokens=256, cache_ram_mib=ram) as engine:
        for _ in range(2):
            cut = start(engine, words(12, 40), 150, hold=True)
            answers = [start(engine, prompt, 20 + i) for i, prompt in enumerate(prompts)]
            never = start(engine, words(13, 40), 150)
            engine.cancel(never.id)
            cancel(engine, cut)
            assert (never.reason, never.tokens) == ("cancelled", [])
            for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
                assert (answer.reason, len(answer.tokens)) == ("length", 20 + i)
                check(path, prompt, answer.tokens)
        stats = engine.stats()
        assert (stats.running, stats.waiting) == (0, 0)


@each_layout
def test_a_cancelled_request_leaves_what_it_computed(path: Path, layout: str) -> None:
    prompt = words(14, 40)
    with running(path, kv_layout=layout, cache_tokens=512) as engine:
        cut = start(engine, prompt, 200, hold=True)
        cancel(engine, cut)
        whole = prompt + cut.tokens[:-1]
        continued = whole + words(15, 8)
        answer = ask(engine, continued, 24)
        assert answer.cached == len(whole)
    check(path, prompt, cut.tokens)
    check(path, continued, answer.tokens)


@each_layout
def test_prefixes_come_back_from_host_ram(path: Path, layout: str) -> None:
    """Nothing stays in the pool, so that all that is found again has been to host RAM and back."""
    prompt = words(16, 60)
    with running(path, kv_layout=layout, cache_ram_mib=64) as engine:
        first = ask(engine, prompt, 24)
        whole = prompt + first.tokens[:-1]
        ask(engine, words(17, 60), 24)
        continued = whole + words(18, 50)  # enough to be worth a save
        answer = ask(engine, continued, 24)
        assert answer.cached == len(whole)
        changed = whole[:50] + words(19, 8)
        other = ask(engine, changed, 24)
        assert other.cached == (50 if reuses_any_prefix(path) else 0)
        later = continued + answer.tokens[:-1] + words(20, 8)
        last = ask(engine, later, 24)
        assert last.cached == len(later) - 8
    check(path, continued, answer.tokens)
    check(path, changed, other.tokens)
    check(path, later, last.tokens)


@pytest.mark.parametrize("ram", [0, 64])
def test_requests_that_do_not_fit_together(path: Path, ram: int) -> None:
    """Four requests of 240 tokens in a pool of 512: one is put back and computed again; nobody sees it."""
    prompts = [words(30 + i, 40) for i in range(4)]
    with running(path, context=512, kv_tokens=512, cache_tokens=64, cache_ram_mib=ram) as engine:
        answers = [start(engine, prompt, 200 + i, hold=i == 0) for i, prompt in enumerate(prompts)]
        answers[0].release()
        for i, answer in enumerate(answers):
            assert (answer.reason, len(answer.tokens), answer.cached) == ("length", 200 + i, 0)
        assert engine.stats().preemptions > 0
    for prompt, answer in zip(prompts, answers, strict=True):
        check(path, prompt, answer.tokens)
