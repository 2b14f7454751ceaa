from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from locallab.cli.doctor.cache.prompts import PATHS, VocabularyModel, path_of, refusal
from locallab.errors import RequestError
from tests.support.tiny_server import Tiny, tiny_server

HI = {"role": "user", "content": "hi </s> you"}
TOOL_TALK = [
    HI,
    {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {}}]},
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "yes"}]},
]
BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {"messages": [HI], "max_tokens": 1}),
    "parts": ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}], "n": 1}),
    "Anthropic": ("/v1/messages", {"system": "be brief", "messages": [HI], "max_tokens": 1}),
    "Anthropic's blocks": ("/v1/messages", {"messages": TOOL_TALK, "max_tokens": 1}),
    "Ollama": ("/api/chat", {"messages": [HI], "stream": False, "options": {"num_predict": 1}}),
    "native chat": ("/chat", {"model_id": "chat", "messages": [HI], "max_length": 1}),
    "Responses": ("/v1/responses", {"input": "hi", "instructions": "be brief", "max_output_tokens": 1}),
    "completion": ("/v1/completions", {"prompt": "<s>once", "max_tokens": 1}),
    "token ids": ("/v1/completions", {"prompt": [3, 4, 5], "max_tokens": 1}),
    "native": ("/generate", {"model_id": "chat", "prompt": "once", "max_length": 1}),
    "native as chat": ("/generate", {"prompt": "once", "chat_template": True, "max_length": 1}),
    "Ollama's generate": (
        "/api/generate",
        {"prompt": "hi", "system": "a", "stream": False, "options": {"num_predict": 1}},
    ),
    "Ollama's raw": ("/api/generate", {"prompt": "hi", "raw": True, "stream": False, "options": {"num_predict": 1}}),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tiny]:
    with tiny_server(tmp_path_factory.mktemp("tiny")) as found:
        yield found


@pytest.fixture(scope="module")
def model(server: Tiny) -> Iterator[VocabularyModel]:
    with VocabularyModel.opened(server.paths["chat"]) as found:
        yield found


def counted(answer: Any) -> int:
    """The tokens of the prompt that an answer of any dialect states."""
    usage = answer.get("usage", answer)
    names = ("prompt_tokens", "input_tokens", "cache_read_input_tokens", "prompt_eval_count")
    return sum(int(usage.get(name, 0)) for name in names)


def test_every_path_is_tried() -> None:
    assert {path for path, _ in BODIES.values()} == {*PATHS}


@pytest.mark.parametrize(("path", "body"), BODIES.values(), ids=BODIES)
def test_a_prompt_has_the_tokens_that_a_server_counts(
    server: Tiny, model: VocabularyModel, path: str, body: dict[str, Any]
) -> None:
    assert path_of(body) == path
    assert len(model.tokens(model.text(path, body))) == counted(server.post(path, **body))


def test_two_bodies_have_one_path_if_one_takes_both() -> None:
    plain, ollamas = {"messages": [HI]}, {"messages": [HI], "options": {}}
    assert path_of(plain) == "/v1/chat/completions"
    assert path_of(plain, ollamas) == "/api/chat"
    assert path_of(plain, {"prompt": "a"}) is None


REFUSED = {
    "no prompt": ({"temperature": 1}, "no field holds a prompt: expected messages, input or prompt"),
    "a wrong role": ({"messages": [{"role": "me"}]}, "messages[0].role: unknown role 'me'"),
    "a stored conversation": (
        {"input": "a", "previous_response_id": "r"},
        "previous_response_id: is known to the server",
    ),
    "two prompts": ({"prompt": ["a", "b"], "max_tokens": 1}, "prompt: holds 2 prompts"),
    "a gap": ({"prompt": "a", "suffix": "b"}, "suffix: prompts around a gap are not compared"),
    "Ollama's gap": ({"prompt": "a", "suffix": "b", "options": {}, "keep_alive": 1}, "suffix: prompts around a gap"),
}


@pytest.mark.parametrize(("body", "reason"), REFUSED.values(), ids=REFUSED)
def test_a_body_that_no_path_takes(body: dict[str, Any], reason: str) -> None:
    assert path_of(body) is None
    assert str(refusal(body)).startswith(reason)


def test_a_token_that_the_model_lacks(model: VocabularyModel) -> None:
    with pytest.raises(RequestError, match="prompt: token ids must be from 0 to"):
        model.text("/v1/completions", {"prompt": [3, 1_000_000]})


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(Exception, match="cannot load"), VocabularyModel.opened(tmp_path / "x.gguf"):
        pass
