"""Pictures and sounds in every dialect, for tiny models that really see and hear."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from locallab.engine.costs import StepCosts
from tests.support.media_files import damaged, encoded, png, url, wav
from tests.support.tiny_server import Tiny, tiny_server

PICTURE, OTHER = png(), png(40, 30)
SOURCE = {"type": "base64", "media_type": "image/png", "data": encoded(PICTURE)}
TEXT = {"type": "text", "text": "what is it?"}
LENGTH = 6


@pytest.fixture(scope="module", params=["gemma3", "qwen2vl_merger", "idefics3"])
def sees(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tiny]:
    folder = tmp_path_factory.mktemp("models")
    with (
        pytest.MonkeyPatch.context() as patch,
        tiny_server(folder, projector=request.param, cache_ram_mib=64, context=1024) as server,
    ):
        patch.setattr(StepCosts, "pays", lambda *_: True)  # tiny models compute about as fast as they restore
        yield server


@pytest.fixture(scope="module")
def hears(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tiny]:
    with tiny_server(tmp_path_factory.mktemp("models"), projector="ultravox", context=1024) as server:
        yield server


def chat(picture: bytes, text: str = "what is it?") -> dict[str, Any]:
    parts = [{"type": "image_url", "image_url": {"url": url(picture)}}, {"type": "text", "text": text}]
    return {"messages": [{"role": "user", "content": parts}], "max_tokens": LENGTH, "temperature": 0}


ASKED: dict[str, tuple[str, dict[str, Any]]] = {
    "openai": ("/v1/chat/completions", chat(PICTURE)),
    "responses": (
        "/v1/responses",
        {
            "input": [
                {
                    "role": "user",
                    "content": [
                        {"type": "input_image", "image_url": url(PICTURE)},
                        {"type": "input_text", "text": "what is it?"},
                    ],
                }
            ],
            "max_output_tokens": LENGTH,
            "temperature": 0,
        },
    ),
    "anthropic": (
        "/v1/messages",
        {
            "messages": [{"role": "user", "content": [{"type": "image", "source": SOURCE}, TEXT]}],
            "max_tokens": LENGTH,
            "temperature": 0,
        },
    ),
    "ollama": (
        "/api/chat",
        {
            "messages": [{"role": "user", "content": "what is it?", "images": [encoded(PICTURE)]}],
            "stream": False,
            "options": {"num_predict": LENGTH, "temperature": 0},
        },
    ),
    "native": ("/chat", {"messages": [{"role": "user", "content": "what is it?"}], "images": [encoded(PICTURE)]}),
    "native text": ("/generate", {"prompt": "what is it?", "images": [encoded(PICTURE)], "max_tokens": LENGTH}),
    "assistant": ("/api/v1/assistant/generate", {"prompt": "a?", "max_tokens": LENGTH, "images": [encoded(PICTURE)]}),
}


@pytest.mark.parametrize("case", ASKED)
def test_every_dialect_takes_a_picture(sees: Tiny, case: str) -> None:
    path, body = ASKED[case]
    response = sees.http.post(path, json={"model": "chat", **body})
    assert response.status_code == 200, response.text


def read(usage: dict[str, Any]) -> int:
    """Return the tokens of a prompt that Anthropic's usage counts in parts."""
    return usage["input_tokens"] + usage.get("cache_read_input_tokens", 0) + usage.get("cache_creation_input_tokens", 0)


def test_the_tokens_of_a_picture_count_everywhere(sees: Tiny) -> None:
    used = sees.post("/v1/chat/completions", **chat(PICTURE))["usage"]["prompt_tokens"]
    text = sees.post("/v1/chat/completions", messages=[{"role": "user", "content": "what is it?"}], max_tokens=1)["usage"]
    assert used > text["prompt_tokens"] + 3
    message = {"role": "user", "content": [{"type": "image", "source": SOURCE}, TEXT]}
    counted = sees.post("/v1/messages/count_tokens", model="chat", messages=[message])["input_tokens"]
    answered = sees.post("/v1/messages", model="chat", messages=[message], max_tokens=1)
    assert counted == read(answered["usage"]) == used


def test_the_same_picture_is_read_once_and_another_is_not_mistaken_for_it(sees: Tiny) -> None:
    first = sees.post("/v1/chat/completions", **chat(OTHER))
    again = sees.post("/v1/chat/completions", **chat(OTHER))
    assert again["choices"][0]["message"] == first["choices"][0]["message"]
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] >= again["usage"]["prompt_tokens"] - 1
    other = sees.post("/v1/chat/completions", **chat(png(41, 30)))
    assert other["usage"]["prompt_tokens_details"]["cached_tokens"] <= len("<s><|im_start|>user\n") + 4


def test_many_at_once(sees: Tiny) -> None:
    pictures = [png(20 + 7 * i, 30) for i in range(4)]
    alone = [sees.post("/v1/chat/completions", **chat(picture))["choices"][0]["message"] for picture in pictures]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda picture: sees.post("/v1/chat/completions", **chat(picture)), pictures * 2))
    assert [each["choices"][0]["message"] for each in together] == alone * 2


def test_listings_say_what_the_model_takes(sees: Tiny) -> None:
    [chat] = [each for each in sees.http.get("/v1/models").json()["data"] if each["id"] == "chat"]
    assert set(chat["modalities"]) == {"text", "image"}
    shown = sees.http.post("/api/show", json={"model": "chat"}).json()
    assert "vision" in shown["capabilities"]
    assert sees.http.get("/props").json()["modalities"] == {"vision": True, "audio": False}


def test_a_model_that_sees_hears_nothing(sees: Tiny) -> None:
    part = {"type": "input_audio", "input_audio": {"data": encoded(wav()), "format": "wav"}}
    answer = sees.refused("/v1/chat/completions", messages=[{"role": "user", "content": [part]}])
    assert "audio" in answer["error"]["message"] or "sound" in answer["error"]["message"]


def test_a_model_hears(hears: Tiny) -> None:
    part = {"type": "input_audio", "input_audio": {"data": encoded(wav()), "format": "wav"}}
    body = {"messages": [{"role": "user", "content": [part, TEXT]}], "max_tokens": LENGTH}
    answer = hears.post("/v1/chat/completions", **body)
    assert answer["usage"]["prompt_tokens"] > 75
    file = {"file": ("a.wav", wav(), "audio/wav")}
    said = hears.http.post("/v1/audio/transcriptions", files=file, data={"model": "chat"})
    assert said.status_code == 200 and "text" in said.json(), said.text


def test_damaged_pictures_harm_nobody(sees: Tiny) -> None:
    for seed in range(150):
        data = damaged(PICTURE, seed)
        answer = sees.http.post("/v1/chat/completions", json=chat(data))
        assert answer.status_code in (200, 400), answer.text
        if answer.status_code == 400:
            assert "messages[0]" in answer.json()["error"]["message"] or answer.json()["error"].get("param")
    assert sees.post("/v1/chat/completions", **chat(PICTURE))["usage"]["completion_tokens"] > 0
