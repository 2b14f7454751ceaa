"""Texts in pieces: the tokens of the whole, for every kind of vocabulary, whatever the text. llama.cpp, tiny vocabularies."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from locallab.engine import llama, text_cuts, tokenizer
from locallab.engine.text_cuts import PIECE
from locallab.engine.tokenizer import Abandoned, Tokenizer
from locallab.errors import ContextLengthExceeded, EngineClosed, RequestError
from tests.support import tiny_vocabulary
from tests.support.tiny_vocabulary import KINDS, RAW, SPECIALS, USER_DEFINED
from tests.support.wait import PATIENCE

RECURSIVE = (
    *("bailingmoe", "bloom", "chameleon", "deepseek-coder", "deepseek-llm", "deepseek-v3", "default", "exaone-moe", "gpt-4o"),
    *("granite-embed-multi-97m", "jais-2", "minicpm5", "seed-coder", "superbpe", "tekken", "tiny_aya", "viking", "youtu"),
)
"""A pre-tokenizer for each set of regular expressions that libstdc++ matches."""
PRETOKENIZERS = (
    *("afmoe", "falcon", "gpt-2", "jina-v2-es", "kimi-k2", "laguna", "llama-bpe", "modern-bert", "qwen2", "qwen35", "smollm"),
    *RECURSIVE,
    *RAW,
)
"""And those that llama.cpp matches by hand."""
FRAGMENTS = [
    *("a", "b", "ab", "the", "A", "B", "é", "e\u0301", "Ω", "汉", "字", "\uff0c", "。", "😀", "they and ", "he\nre ", "a b a "),
    *(
        " <mask>",
        "<|im_end|> a",
        "汉字\uff0c字",
        " ",
        "  ",
        "    ",
        "\n",
        "\n\n",
        "\t",
        "\r\n",
        "\u00a0",
        "\ufeff",
        "▁",
        "▁▁",
        "1",
        "12",
        "123",
        "a1",
    ),
    *(".", "'s", "'T", "#", "=", "-", "(", '"', ":", "{", "<|im_", "|>", "<", "[INST]", *SPECIALS, *USER_DEFINED),
]
texts = st.lists(st.sampled_from(FRAGMENTS), min_size=15, max_size=60).map("".join)
Tokenize = Callable[..., list[int]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vocabularies")


@pytest.fixture
def cut_small() -> Iterator[None]:
    """Cuts texts wherever they may be cut."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_cuts, "PIECE", 1)
        patch.setattr(tokenizer, "PIECE", 1)
        yield


def vocabulary(folder: Path, kind: tiny_vocabulary.Kind = "bpe", pre: str = "gpt-2", **facts: Any) -> llama.Model:
    return llama.Model(tiny_vocabulary.write(folder / "tiny.gguf", kind, pre, **facts), 0, vocab_only=True)


def check(model: llama.Model, examples: int) -> None:
    """Assert that texts in the smallest pieces have the tokens of the whole, and that there are not fewer than foretold."""
    pieces, cuts = Tokenizer(model), 0

    @settings(max_examples=examples, database=None)
    @given(texts, st.booleans(), st.booleans())
    def same(text: str, add_special: bool, parse_special: bool) -> None:
        nonlocal cuts
        whole = model.tokenize(text, add_special=add_special, parse_special=parse_special)
        assert pieces.tokenize(text, add_special=add_special, parse_special=parse_special) == whole
        assert pieces._learned().least(text.encode()) <= len(whole)
        cuts += len(list(pieces._learned().cuts.places(text.encode(), parse_special)))

    same()
    assert cuts


@pytest.mark.usefixtures("cut_small")
@pytest.mark.parametrize("pre", PRETOKENIZERS)
def test_words_of_every_pretokenizer(folder: Path, pre: str) -> None:
    with contextlib.closing(vocabulary(folder, "bpe", pre)) as model:
        check(model, 40)


@pytest.mark.usefixtures("cut_small")
@pytest.mark.parametrize("facts", [{}, {"add_space_prefix": False}, {"name": "phi-3"}], ids=["plain", "no prefix", "strips"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_vocabulary(folder: Path, kind: tiny_vocabulary.Kind, facts: dict[str, Any]) -> None:
    with contextlib.closing(vocabulary(folder, kind, "qwen2", **facts)) as model:
        check(model, 60)


@pytest.mark.usefixtures("cut_small")
@pytest.mark.parametrize("pre", ["exaone-moe", "superbpe", "gemma4", "jina-v2-es"])
def test_pretokenizers_with_rules_of_their_own(folder: Path, pre: str) -> None:
    with contextlib.closing(vocabulary(folder, "bpe", pre)) as model:
        check(model, 100)


def test_words_without_a_break(folder: Path) -> None:
    """On a thread of usual size they end the process, so they are tried in one of their own."""
    script = """
import pathlib, sys
from locallab.engine import llama
from locallab.engine.tokenizer import Tokenizer
from tests.support import tiny_vocabulary
for pre in sys.argv[2:]:
    model = llama.Model(tiny_vocabulary.write(pathlib.Path(sys.argv[1]) / "long.gguf", "bpe", pre), 0, vocab_only=True)
    for text in ("a", " "):
        Tokenizer(model).tokenize(text * 45_000, add_special=False, parse_special=True)
    model.close()
"""
    command = [sys.executable, "-c", script, str(folder), *RECURSIVE]
    done = subprocess.run(command, capture_output=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_word_beyond_all_measure_is_refused(folder: Path) -> None:
    with (
        contextlib.closing(vocabulary(folder)) as model,
        pytest.raises(RequestError, match=r"has 1048577 bytes without a break"),
    ):
        Tokenizer(model).tokenize("a" * ((1 << 20) + 1), add_special=False, parse_special=False)


class Recorder:
    """A model that records the texts it tokenizes, and calls `hook` with each."""

    def __init__(self, model: llama.Model, hook: Callable[[bytes], object] = lambda data: None) -> None:
        self._model = model
        self._hook = hook
        self.texts: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def tokenize(self, data: bytes, *, add_special: bool, parse_special: bool) -> list[int]:
        self.texts.append(data)
        self._hook(data)
        return self._model.tokenize(data, add_special=add_special, parse_special=parse_special)


@pytest.fixture
def model(folder: Path) -> Iterator[llama.Model]:
    with contextlib.closing(vocabulary(folder)) as found:
        yield found


def recorded(model: llama.Model, hook: Callable[[bytes], object] = lambda data: None) -> tuple[Tokenizer, Recorder]:
    recorder = Recorder(model, hook)
    return Tokenizer(recorder), recorder  # type: ignore[arg-type]


def test_what_cannot_fit_is_refused_before_it_is_tokenized(model: llama.Model) -> None:
    pieces, recorder = recorded(model)
    with pytest.raises(ContextLengthExceeded, match=r"context length is 512 tokens.*your request has at least 645278 tokens"):
        pieces.tokenize(" " * (8 << 20), add_special=True, parse_special=True, context=512)
    assert recorder.texts == [b""]


def test_what_does_not_fit_is_tokenized_no_further(model: llama.Model) -> None:
    pieces, recorder = recorded(model)
    text = "x y " * 8 * PIECE
    with pytest.raises(ContextLengthExceeded, match="at least") as refused:
        pieces.tokenize(text, add_special=False, parse_special=True, context=len(text) // 4)
    assert sum(map(len, recorder.texts)) < len(text) / 2
    assert refused.value.n_prompt_tokens <= len(pieces.tokenize(text, add_special=False, parse_special=True))
    with pytest.raises(ContextLengthExceeded, match="your request has 3 tokens"):
        pieces.tokenize("x y", add_special=False, parse_special=True, context=2)


@pytest.mark.parametrize("text", ["<|im_start|>1<|im_end|>\n", "hello there ", "汉字\uff0c汉字。", "line\nbreak\n"])
def test_pieces_are_small_so_that_nothing_is_quadratic(model: llama.Model, text: str) -> None:
    pieces, recorder = recorded(model)
    pieces.tokenize(text * 40_000, add_special=True, parse_special=True)
    assert max(map(len, recorder.texts)) < PIECE + 100


def test_it_stops_between_pieces_when_nobody_waits(model: llama.Model) -> None:
    pieces, recorder = recorded(model)
    with pytest.raises(Abandoned):
        pieces.tokenize("x y " * 8 * PIECE, add_special=False, parse_special=True, stopped=lambda: len(recorder.texts) == 4)
    assert len(recorder.texts) == 4


def test_texts_are_tokenized_at_once_and_closing_waits_for_them(model: llama.Model) -> None:
    both, go = threading.Barrier(3), threading.Event()

    def hook(data: bytes) -> None:
        if data:
            both.wait(PATIENCE)
            go.wait(PATIENCE)

    pieces, _ = recorded(model, hook)
    with ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(pieces.tokenize, text, add_special=False, parse_special=True) for text in ("a", "b")]
        both.wait(PATIENCE)
        closing = pool.submit(pieces.close)
        with pytest.raises(EngineClosed):
            while True:
                pieces.detokenize([1])
        assert not closing.done()
        go.set()
        closing.result(PATIENCE)
        assert all(answer.result(PATIENCE) for answer in answers)


def test_closing_ends_a_long_text_between_two_pieces(model: llama.Model) -> None:
    pieces, recorder = recorded(model, lambda data: pieces.refuse() if data else None)
    with pytest.raises(EngineClosed):
        pieces.tokenize("x y " * PIECE, add_special=False, parse_special=True)
    assert len(recorder.texts) == 2  # that of no text tells what stands around one


def test_many_tokens_give_back_their_text(model: llama.Model) -> None:
    pieces, text = Tokenizer(model), "hello <|im_end|> 汉\n" * PIECE
    tokens = pieces.tokenize(text, add_special=False, parse_special=True)
    assert pieces.detokenize(tokens) == text == b"".join(pieces.pieces(tokens)).decode()
