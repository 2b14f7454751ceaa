"""A draft model and the model that it drafts for: the real engine, tiny models."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest

from locallab.engine import TextEngine
from locallab.engine.costs import DraftCosts, StepCosts
from locallab.errors import ModelLoadError
from locallab.settings import EngineSettings
from tests.support import tiny_gguf
from tests.support.live_engine import Answer, ask, check, running, start

each_layout = pytest.mark.parametrize("layout", ["unified", "streams"])


@pytest.fixture(autouse=True)
def drafts_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny model computes a token in no time; whether a draft pays differs between runs."""
    monkeypatch.setattr(StepCosts, "decode", lambda _, answers, *__: 0.1 * bool(answers))
    monkeypatch.setattr(StepCosts, "verify", lambda *_: 0.0)
    monkeypatch.setattr(DraftCosts, "guess", lambda _, sequences, length: 0.0001 * length)
    monkeypatch.setattr(DraftCosts, "read", lambda _, tokens: 0.0001 * tokens)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tiny_gguf.write(tmp_path / "large.gguf", "llama")


def prompts(count: int = 3) -> list[list[int]]:
    """Return prompts of letters, which no answer repeats."""
    return [[tiny_gguf.FIRST_PLAIN + (7 * i + 31 * n) % 280 for i in range(20 + n)] for n in range(count)]


def usage(answer: Answer) -> tuple[int, int]:
    last = answer.ended().last
    assert last is not None and last.usage is not None
    return last.usage.accepted_tokens, last.usage.rejected_tokens


@each_layout
@pytest.mark.parametrize(("seed", "share"), [(0, (0.9, 1.0)), (1, (0.0, 0.3))])
def test_answers_are_what_they_are_without(path: Path, layout: str, seed: int, share: tuple[float, float]) -> None:
    """The draft model is the same one, so that all its guesses are right, or another one, so that few are."""
    draft = tiny_gguf.write(path.with_name("small.gguf"), "llama", seed=seed)
    with running(path, draft_model=str(draft), kv_layout=layout, kv_tokens=1024) as engine:
        alone = ask(engine, prompts()[0], 100)
        together = [start(engine, prompt, 100) for prompt in prompts()]
        for prompt, answer in zip([prompts()[0], *prompts()], [alone, *together], strict=True):
            check(path, prompt, answer.ended().tokens)
    right, wrong = map(sum, zip(*(usage(answer) for answer in together), strict=True))
    assert right + wrong > 5 and share[0] <= right / (right + wrong) <= share[1]


def test_samples_rules_and_stop_strings_hold(path: Path) -> None:
    with running(path, draft_model=str(path)) as engine:
        answer = ask(engine, prompts()[0], 60, repeat_penalty=1.3, logprobs=1)
        stopped = start(engine, prompts()[0], 60, stop=("a",)).ended()
    check(path, prompts()[0], answer.tokens, repeat_penalty=1.3)
    assert [each.token for each in answer.logprobs] == answer.tokens and sum(usage(answer)) > 0
    assert "a" not in stopped.text


@pytest.mark.parametrize("kind", ["gemma3", "gpt-oss"])
def test_models_with_a_window_draft_and_are_drafted_for(path: Path, kind: str) -> None:
    """Far beyond the window: what a wrong guess has pushed out of it may make the next ones worse, but no answer."""
    other = tiny_gguf.write(path.with_name(f"{kind}.gguf"), kind)
    for target, draft in ((other, path), (path, other), (other, other)):
        with running(target, draft_model=str(draft)) as engine:
            answer = ask(engine, prompts()[1], 120)
        check(target, prompts()[1], answer.tokens)
        assert target != draft or usage(answer)[0] > 60


def refusal(target: Path, draft: Path) -> str:
    with pytest.raises(ModelLoadError) as refused:
        TextEngine(target, _settings(draft))
    assert refused.value.path == draft
    return refused.value.reason


def _settings(draft: Path) -> EngineSettings:
    return EngineSettings(context=256, parallel=2, threads=1, gpu_layers=0, draft_model=str(draft))


def test_a_wrong_pair_is_refused_by_name(path: Path, tmp_path: Path) -> None:
    more = [(f"<|x{i}|>", gguf.TokenType.NORMAL) for i in range(200)]
    longer = tiny_gguf.write(tmp_path / "longer.gguf", "llama", more=more)
    assert refusal(path, longer) == (
        "it cannot draft for large.gguf: its vocabulary has 485 tokens, not 285; name a model of the same family"
    )
    ends = tiny_gguf.write(tmp_path / "ends.gguf", "llama", facts={"tokenizer.ggml.add_bos_token": False})
    assert "texts begin or end with other tokens" in refusal(path, ends)
    ours, theirs = (
        tiny_gguf.write(tmp_path / f"{name}.gguf", "llama", more=[(name, gguf.TokenType.NORMAL)]) for name in ("ab", "xy")
    )
    assert "token 285 is 'xy', not 'ab'" in refusal(ours, theirs)
    recurrent = tiny_gguf.write(tmp_path / "mamba.gguf", "mamba")
    assert "keeps a running state, which cannot be rewound" in refusal(path, recurrent)
    assert "mamba.gguf keeps a running state, which a wrong draft cannot be taken out of" in refusal(recurrent, path)
    with pytest.raises(ModelLoadError, match=r"none\.gguf.*there is no such file"):
        TextEngine(path, _settings(tmp_path / "none.gguf"))


@pytest.mark.parametrize("swapped", [False, True])
def test_a_vocabulary_may_be_padded(path: Path, swapped: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Tokens that one of the two does not have are neither guessed nor read."""
    padding = [(f"[PAD{i}]", gguf.TokenType.UNUSED) for i in range(100)]
    padded = tiny_gguf.write(path.with_name("padded.gguf"), "llama", more=padding)
    target, draft = (padded, path) if swapped else (path, padded)
    bias = tuple((token, 50.0) for token in range(300, 340)) if swapped else ()
    with running(target, draft_model=str(draft)) as engine:
        answer = ask(engine, prompts()[0], 80, logit_bias=bias)
    check(target, prompts()[0], answer.tokens, logit_bias=bias)
    assert sum(usage(answer)) > 0 and "the draft model failed" not in caplog.text


def test_without_drafts_no_draft_model_is_loaded(path: Path) -> None:
    with running(path, draft_model="/nowhere.gguf", drafts=False) as engine:
        assert len(ask(engine, prompts()[0], 5).tokens) == 5
