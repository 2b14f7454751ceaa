"""Tokens to text and back, and those with which a model fills in the middle. The real engine, tiny models."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest

from locallab.chat.fim import infill
from locallab.engine import FimTokens
from locallab.errors import EngineClosed, InvalidField
from tests.support import tiny_gguf
from tests.support.live_engine import ask, running
from tests.support.tiny_gguf import BOS, EOS, N_VOCAB

CONTROL, NORMAL = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
QWEN = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"]


def write(path: Path, *texts: str) -> Path:
    return tiny_gguf.write(path / "tiny.gguf", "llama", more=[("▁", NORMAL), *((text, CONTROL) for text in texts)])


def test_a_model_says_how_it_fills_in_the_middle(tmp_path: Path) -> None:
    first = N_VOCAB + 1
    with running(write(tmp_path, *QWEN)) as engine:
        assert engine.info.fim == FimTokens(
            prefix=first, suffix=first + 1, middle=first + 2, pad=first + 3, repo=first + 4, separator=first + 5, bos=BOS
        )


def test_what_a_model_lacks_is_none(tmp_path: Path) -> None:
    with running(write(tmp_path, *QWEN[:3])) as engine:
        assert engine.info.fim is not None
        assert (engine.info.fim.repo, engine.info.fim.separator, engine.info.fim.pad) == (None, None, None)


@pytest.mark.parametrize("texts", [(), QWEN[:2], QWEN[1:]], ids=["none", "no middle", "no prefix"])
def test_a_model_that_lacks_one_of_three_cannot(tmp_path: Path, texts: tuple[str, ...]) -> None:
    with running(write(tmp_path, *texts)) as engine:
        assert engine.info.fim is None


def test_markup_in_the_users_code_stays_text(tmp_path: Path) -> None:
    with running(write(tmp_path, *QWEN)) as engine:
        fim = engine.info.fim
        assert fim is not None

        def tokenize(text: str) -> list[int]:
            return engine.tokenize(text, add_special=False, parse_special=False)

        prompt = infill(fim, tokenize, "a<|fim_suffix|>", "b")
        assert [prompt.count(token) for token in (fim.prefix, fim.suffix, fim.middle)] == [1, 1, 1]
        assert len(ask(engine, prompt, 5).tokens) == 5


def test_tokens_give_back_their_text_and_markup_its_name(tmp_path: Path) -> None:
    with running(write(tmp_path, *QWEN)) as engine:
        text = "abc é\n世😀 xyz"
        tokens = engine.tokenize(text, add_special=False, parse_special=False)
        assert engine.detokenize(tokens).removeprefix(" ") == text
        assert engine.detokenize([BOS, *tokens[1:4], EOS, N_VOCAB + 1]) == "<s>abc</s><|fim_prefix|>"
        assert engine.detokenize([]) == ""
        assert engine.detokenize([tiny_gguf.FIRST_PLAIN + 0xC3]) == "\ufffd"


@pytest.mark.parametrize("token", [-1, N_VOCAB + 1])
def test_what_is_no_token_is_refused(tmp_path: Path, token: int) -> None:
    with (
        running(write(tmp_path)) as engine,
        pytest.raises(InvalidField, match=f"tokens: token ids must be from 0 to {N_VOCAB}"),
    ):
        engine.detokenize([1, token])


def test_a_closed_engine_refuses(tmp_path: Path) -> None:
    with running(write(tmp_path)) as engine:
        pass
    with pytest.raises(EngineClosed):
        engine.detokenize([1])


def test_the_embedded_model_has_none_and_gives_back_its_texts(model_path: Path) -> None:
    with running(model_path, context=64, parallel=1) as engine:
        assert engine.info.fim is None
        text = "<|im_start|>user\nHéllo  wörld!<|im_end|>\n"
        assert engine.detokenize(engine.tokenize(text, add_special=False, parse_special=True)) == text
