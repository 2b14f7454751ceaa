"""Pictures and sounds in prompts of real engines with tiny random weights: the answers are llama.cpp's own, alone and together,
cached and not."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from locallab.engine import TextEngine
from locallab.engine.costs import StepCosts
from locallab.engine.media.runs import Prompt, joined
from locallab.engine.mover import Mover
from locallab.errors import ContextLengthExceeded, InvalidField, ModelLoadError
from tests.support import tiny_gguf, tiny_projector
from tests.support.live_engine import TIE, Answer, ask, cancel, running, start
from tests.support.media_reference import Part, Reference

SEES = [kind for kind in tiny_projector.KINDS if kind != "ultravox"]


@pytest.fixture(autouse=True)
def restores_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StepCosts, "pays", lambda *_: True)


PAIRS = [
    *tiny_projector.KINDS.items(),
    ("qwen2vl_merger", "qwen35"),
    ("idefics3", "gemma3"),
    ("gemma3", "llama"),
    ("idefics3", "lfm2"),
]
"""Projectors with the models that they are for, and with models that keep a state or a window besides."""


@pytest.fixture(scope="module", params=PAIRS, ids="-".join)
def pair(request: pytest.FixtureRequest) -> tuple[str, str]:
    return request.param


@pytest.fixture(scope="module")
def kind(pair: tuple[str, str]) -> str:
    return pair[0]


@pytest.fixture(scope="module")
def files(pair: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write(tmp_path_factory.mktemp("models"), *pair)


@pytest.fixture(scope="module")
def reference(files: tuple[Path, Path]) -> Iterator[Reference]:
    found = Reference(*files)
    yield found
    found.close()


def write(folder: Path, kind: str, architecture: str = "") -> tuple[Path, Path]:
    architecture = architecture or tiny_projector.KINDS[kind]
    model = tiny_gguf.write(folder / f"{architecture}.gguf", architecture, more=tiny_projector.vocabulary(kind))
    return model, tiny_projector.write(folder / "mmproj.gguf", kind)


def words(seed: int, n: int) -> list[int]:
    chosen = random.Random(seed)
    return [chosen.randrange(tiny_gguf.FIRST_PLAIN, tiny_gguf.N_VOCAB) for _ in range(n)]


def media(kind: str, seed: int, width: int = 50, height: int = 40) -> Part:
    chosen = np.random.default_rng(seed)
    if kind == "ultravox":
        tones = chosen.integers(100, 7000, (8, 1)) * np.arange(1000) / 8000  # one after the other
        return (0.5 * np.sin(np.pi * tones)).astype(np.float32).ravel()
    return width, height, chosen.integers(0, 256, (height, width, 3), np.uint8).tobytes()


def prompt(engine: TextEngine, parts: Sequence[Part]) -> Prompt:
    return joined(_tokens(engine, part) for part in parts)


def _tokens(engine: TextEngine, part: Part) -> Sequence[int]:
    if isinstance(part, tuple):
        return engine.picture(*part, "images[0]")
    return engine.sound(part.tobytes(), "audio") if isinstance(part, np.ndarray) else part


def right(reference: Reference, parts: Sequence[Part], answer: Answer) -> None:
    """Assert that an answer with logprobs is what llama.cpp says, up to ties."""
    expected = reference.answer(parts, answer.tokens)
    for i, (token, row) in enumerate(zip(answer.tokens, expected, strict=True)):
        assert abs(answer.logprobs[i].logprob - row[token]) < TIE, f"token {i} has another probability"
        row[tiny_gguf.EOS] = -np.inf  # not drawn under ignore_eos
        assert row.max() - row[token] < TIE, f"token {i} is {token}, should be {row.argmax()}"


def asked(engine: TextEngine, reference: Reference, parts: Sequence[Part], n: int = 12) -> Answer:
    answer = ask(engine, prompt(engine, parts), n, logprobs=1)
    right(reference, parts, answer)
    return answer


def opened(files: tuple[Path, Path], **settings: object):
    model, projector = files
    return running(model, **{"mmproj": str(projector), "context": 1024, "kv_tokens": 4096, **settings})


each_layout = pytest.mark.parametrize("layout", ["unified", "streams"])


@each_layout
def test_the_answer_is_the_one_of_llama_cpp(kind: str, files: tuple[Path, Path], reference: Reference, layout: str) -> None:
    with opened(files, kv_layout=layout) as engine:
        assert engine.info.modalities == {"text", "audio" if kind == "ultravox" else "image"}
        for parts in (
            [words(1, 9), media(kind, 1), words(2, 7)],
            [media(kind, 2), words(3, 5), media(kind, 3, 20, 90), media(kind, 4), words(4, 30)],
            [words(5, 3), media(kind, 5, 33, 33), *([words(6, 1)] if kind == "ultravox" else [])],
        ):
            asked(engine, reference, parts)


def test_a_picture_counts_and_matters(kind: str, files: tuple[Path, Path]) -> None:
    with opened(files) as engine:
        seen = prompt(engine, [words(1, 9), media(kind, 1), words(2, 7)])
        answer = ask(engine, seen, 12)
        assert answer.last is not None and answer.last.usage is not None
        assert answer.last.usage.prompt_tokens == len(seen) > 16 + sum(run.count for run in seen.runs) - 1
        assert min(seen) < 0 and all(min(run.count, 4) > 1 for run in seen.runs)
        other = ask(engine, prompt(engine, [words(1, 9), media(kind, 2), words(2, 7)]), 12)
        assert other.tokens != answer.tokens


@each_layout
def test_together_as_alone(kind: str, files: tuple[Path, Path], reference: Reference, layout: str) -> None:
    """Some see pictures, some read; all at once, in steps with both."""
    prompts = [
        [words(10 + i, 5 + 9 * i), *([media(kind, 10 + i, 30 + 10 * i)] if i % 4 else []), words(20 + i, 4 + i)]
        for i in range(8)
    ]
    with opened(files, kv_layout=layout, parallel=8, kv_tokens=8192) as engine:
        answers = [start(engine, prompt(engine, parts), 16, logprobs=1) for parts in prompts]
        for parts, answer in zip(prompts, answers, strict=True):
            assert answer.reason == "length"
            right(reference, parts, answer)


@each_layout
@pytest.mark.parametrize("ram", [0, 64])
def test_the_next_turn_finds_the_picture(
    kind: str, files: tuple[Path, Path], reference: Reference, layout: str, ram: int
) -> None:
    parts: list[Part] = [words(1, 9), media(kind, 1), words(2, 7)]
    with opened(files, kv_layout=layout, cache_tokens=1024, cache_ram_mib=ram) as engine:
        first = asked(engine, reference, parts)
        assert first.cached == 0
        whole = len(prompt(engine, parts)) + len(first.tokens) - 1
        parts = [*parts, [*first.tokens, *words(3, 5)], media(kind, 2, 70, 30), words(4, 4)]
        second = asked(engine, reference, parts)
        assert second.cached == whole


@each_layout
def test_a_picture_comes_back_from_host_ram(
    kind: str, files: tuple[Path, Path], reference: Reference, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it is left in the KV cache: others have taken every place."""
    restored: list[int] = []
    put_back = Mover._put_back
    monkeypatch.setattr(Mover, "_put_back", lambda *of: (restored.append(of[3]), put_back(*of))[1])
    parts: list[Part] = [words(1, 9), media(kind, 1), words(2, 20)]
    with opened(files, kv_layout=layout, parallel=2, kv_tokens=1024, cache_ram_mib=64) as engine:
        first = asked(engine, reference, parts)
        for i in range(4):
            together = [start(engine, words(50 + 2 * i + j, 200), 40) for j in range(2)]
            assert {answer.reason for answer in together} == {"length"}
        again = asked(engine, reference, [*parts, [*first.tokens, *words(3, 5)]])
        assert again.cached >= len(prompt(engine, parts)) - 1
        assert restored and again.cached > sum(run.count for run in prompt(engine, parts).runs)


@pytest.mark.parametrize("ram", [0, 64])
def test_the_same_picture_under_another_question(kind: str, files: tuple[Path, Path], reference: Reference, ram: int) -> None:
    shared: list[Part] = [words(1, 9), media(kind, 1)]
    with opened(files, cache_tokens=1024, cache_ram_mib=ram) as engine:
        asked(engine, reference, [*shared, words(2, 12)])
        answer = asked(engine, reference, [*shared, words(3, 12)])
        if engine.info.reuse == "prefix":
            assert answer.cached == len(prompt(engine, shared))
        other = asked(engine, reference, [words(1, 9), media(kind, 2), words(2, 12)])
        assert other.cached <= len(prompt(engine, [*shared])) - sum(run.count for run in prompt(engine, shared).runs)


def test_eight_questions_on_one_picture_encode_it_once(
    kind: str, files: tuple[Path, Path], reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    from locallab.engine.media.projector import Projector

    encoded: list[bytes] = []
    encode = Projector.encode
    monkeypatch.setattr(Projector, "encode", lambda self, run: (encoded.append(run.key), encode(self, run))[1])
    prompts = [[words(1, 9), media(kind, 1), words(10 + i, 6)] for i in range(8)]
    with opened(files, parallel=8, kv_tokens=8192, cache_tokens=1024, cache_ram_mib=64) as engine:
        answers = [start(engine, prompt(engine, parts), 8, logprobs=1) for parts in prompts]
        for parts, answer in zip(prompts, answers, strict=True):
            assert answer.reason == "length"
            right(reference, parts, answer)
        assert len(encoded) == len(set(encoded)) == len(prompt(engine, prompts[0]).runs)


def test_who_leaves_while_a_picture_is_encoded(kind: str, files: tuple[Path, Path], reference: Reference) -> None:
    parts = [words(1, 9), media(kind, 1), words(2, 7)]
    with opened(files, cache_tokens=1024) as engine:
        answer = start(engine, prompt(engine, parts), 4)
        engine.cancel(answer.id)
        assert answer.reason == "cancelled"
        asked(engine, reference, parts)
        held = start(engine, prompt(engine, parts), 100, hold=True)
        cancel(engine, held)
        asked(engine, reference, parts)


def test_answers_go_on_while_pictures_wait_for_room(kind: str, files: tuple[Path, Path], reference: Reference) -> None:
    """A pool that does not hold all at once: everybody comes to an end, and nobody's answer changes."""
    prompts = [[words(30 + i, 20), media(kind, 30 + i), words(40 + i, 8)] for i in range(6)]
    with opened(files, context=512, kv_tokens=700, kv_layout="unified", parallel=6) as engine:
        answers = [start(engine, prompt(engine, parts), 40, logprobs=1) for parts in prompts]
        for parts, answer in zip(prompts, answers, strict=True):
            assert answer.reason == "length"
            right(reference, parts, answer)


def test_log_probabilities_of_the_prompt_are_refused(kind: str, files: tuple[Path, Path]) -> None:
    with opened(files) as engine, pytest.raises(InvalidField, match="prompt_logprobs"):
        start(engine, prompt(engine, [media(kind, 1), words(1, 3)]), 1, logprobs=1, prompt_logprobs=True)


def test_an_encoding_that_fails_ends_its_request_alone(
    kind: str, files: tuple[Path, Path], reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    from locallab.engine.media.projector import Projector
    from locallab.errors import EngineFailure

    parts = [words(1, 9), media(kind, 1), words(2, 7)]
    with opened(files) as engine:

        def fails(*_: object) -> None:
            raise EngineFailure("images[0] cannot be encoded: broken")

        with monkeypatch.context() as broken:
            broken.setattr(Projector, "encode", fails)
            answer = start(engine, prompt(engine, parts), 4).ended()
        assert answer.reason == "error" and "broken" in str(answer.last and answer.last.error)
        asked(engine, reference, parts)


def test_a_text_model_takes_none(tmp_path: Path) -> None:
    with running(tiny_gguf.write(tmp_path / "llama.gguf", "llama")) as engine:
        assert engine.info.modalities == {"text"} and engine.audio_rate == 0
        with pytest.raises(InvalidField, match=r"images\[0\]: this model takes no images"):
            engine.picture(1, 1, b"abc", "images[0]")
        with pytest.raises(InvalidField, match="audio: this model takes no audio"):
            engine.sound(b"\0" * 4, "audio")


def test_a_projector_of_another_model(tmp_path: Path) -> None:
    model, _ = write(tmp_path, "idefics3")
    other = tiny_projector.write(tmp_path / "other.gguf", "idefics3", text=32)
    with pytest.raises(ModelLoadError, match=r"other\.gguf"), running(model, mmproj=str(other)):
        pass
    plain = tiny_gguf.write(tmp_path / "plain.gguf", "llama")
    with (
        pytest.raises(ModelLoadError, match=r"mmproj\.gguf.*tokens that the model's vocabulary does not have"),
        running(plain, mmproj=str(tmp_path / "mmproj.gguf")),
    ):
        pass


@pytest.mark.parametrize("content", [b"", b"GGUF", b"no projector", b"GGUF\x03\0\0\0" + bytes(16)])
def test_no_projector_at_all(tmp_path: Path, content: bytes) -> None:
    model = tiny_gguf.write(tmp_path / "llama.gguf", "llama")
    path = tmp_path / "mmproj.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelLoadError, match=r"mmproj\.gguf"), running(model, mmproj=str(path)):
        pass


@pytest.mark.parametrize("kind", ["deepseek4v", "hunyuanvl"])
def test_a_kind_that_is_not_supported(tmp_path: Path, kind: str) -> None:
    model = tiny_gguf.write(tmp_path / "llama.gguf", "llama")
    path = tiny_projector.write(tmp_path / "mmproj.gguf", kind)
    with pytest.raises(ModelLoadError, match=rf"mmproj\.gguf.*'{kind}' are not supported"), running(model, mmproj=str(path)):
        pass


@pytest.mark.parametrize("kind", SEES)
@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 4000), (4000, 1), (3, 700), (4096, 4096)])
def test_pictures_of_any_shape(tmp_path: Path, kind: str, width: int, height: int) -> None:
    """Each is answered or refused by name."""
    with opened(write(tmp_path, kind)) as engine:
        try:
            seen = prompt(engine, [words(1, 5), (width, height, bytes(3 * width * height)), words(2, 5)])
            ask(engine, seen, 2)
        except ContextLengthExceeded:
            assert width * height > 1000 * 1000
        except InvalidField as error:
            assert error.field == "images[0]"
