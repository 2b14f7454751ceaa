from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from locallab.engine import TextEngine
from locallab.engine.vocabulary import Vocabulary
from locallab.errors import ModelLoadError
from locallab.settings import EngineSettings
from tests.support import tiny_gguf


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf.write(tmp_path_factory.mktemp("vocabulary") / "tiny.gguf", "llama")


@pytest.fixture(scope="module")
def vocabulary(file: Path) -> Iterator[Vocabulary]:
    with contextlib.closing(Vocabulary(file)) as found:
        yield found


def test_it_tokenizes_as_an_engine_of_the_file(file: Path, vocabulary: Vocabulary) -> None:
    with contextlib.closing(TextEngine(file, EngineSettings(threads=1, gpu_layers=0))) as engine:
        info = engine.info
        assert vocabulary.n_vocab == info.n_vocab
        for name in ("bos", "eos", "control_tokens", "chat_template", "named_templates"):
            assert getattr(vocabulary.info, name) == getattr(info, name)
        for text in ("", "<s>hello </s>", "Grüße 😀"):
            for special in (False, True):
                tokens = engine.tokenize(text, add_special=special, parse_special=special)
                assert vocabulary.tokenize(text, add_special=special, parse_special=special) == tokens
                assert vocabulary.detokenize(tokens) == engine.detokenize(tokens)


def test_the_weights_are_not_read(tmp_path: Path, vocabulary: Vocabulary) -> None:
    without = tiny_gguf.write(tmp_path / "without.gguf", "llama", without=["output_norm.weight"])
    with contextlib.closing(Vocabulary(without)) as found:
        assert found.info == vocabulary.info
    with pytest.raises(ModelLoadError):
        TextEngine(without, EngineSettings(threads=1, gpu_layers=0))


def test_a_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"cannot load .*none\.gguf"):
        Vocabulary(tmp_path / "none.gguf")


def test_named_chat_templates(tmp_path: Path) -> None:
    long = "tools" * 2_000
    named = {"default": "plain", "tool_use": long, "rag": "documents", "other": "other"}
    templates = [{"name": name, "template": text} for name, text in named.items()]
    file = tiny_gguf.write(tmp_path / "named.gguf", "llama", template=templates)
    with contextlib.closing(TextEngine(file, EngineSettings(threads=1, gpu_layers=0))) as engine:
        assert engine.info.chat_template is None  # "plain" is no template, but a name that llama.cpp might guess
        assert engine.info.named_templates == {"tool_use": long, "rag": "documents"}
