from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from locallab.media.attachment import digest
from tests.support.fake_engine import say
from tests.support.http_server import Served, only_prompt, start_in
from tests.support.media_files import encoded, flac, png, wav

PATH = "/v1/audio/transcriptions"
WAV = wav()
HEARD = f"<audio {digest(WAV)[:8]}>"


@pytest.fixture(scope="module")
def shared_ear(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with start_in(tmp_path_factory.mktemp("ear"))(engine={"modalities": ("text", "audio"), "context": 4096}) as served:
        yield served


@pytest.fixture
def ear(shared_ear: Served) -> Served:
    shared_ear.engine.reset()
    shared_ear.script(*say(" Hello, world."))
    return shared_ear


def send(served: Served, data: bytes = WAV, **fields: Any) -> Any:
    return served.http.post(PATH, files={"file": ("a.wav", data, "audio/wav")}, data=fields)


def test_the_client_of_openai(ear: Served) -> None:
    found = ear.openai.audio.transcriptions.create(model="tiny:1b", file=("a.wav", WAV), language="en", temperature=0.5)
    assert found.text == "Hello, world."
    [(prompt, params)] = ear.engine.submitted
    assert f"user\nTranscribe audio to text (language: en){HEARD}<|im_end|>" in prompt
    assert params.temperature == 0.5


def test_a_form(ear: Served) -> None:
    response = send(ear, prompt="Write it down", max_tokens="3")
    assert response.status_code == 200, response.text
    usage = response.json()["usage"]
    assert usage["type"] == "tokens" and usage["output_tokens"] == 3
    assert usage["total_tokens"] == usage["input_tokens"] + 3
    [(prompt, params)] = ear.engine.submitted
    assert f"user\nWrite it down{HEARD}<|im_end|>" in prompt and (params.temperature, params.max_tokens) == (0, 3)


def test_json(ear: Served) -> None:
    response = ear.http.post(PATH, json={"file": encoded(flac()), "model": "tiny:1b"})
    assert response.json()["text"] == "Hello, world." and digest(flac())[:8] in only_prompt(ear)


def test_the_text_alone(ear: Served) -> None:
    response = send(ear, response_format="text")
    assert response.headers["content-type"] == "text/plain; charset=utf-8" and response.text == "Hello, world."
    assert (
        ear.openai.audio.transcriptions.create(model="x", file=("a.wav", WAV), response_format="text").strip()
        == "Hello, world."
    )


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"response_format": "srt"}, "response_format: "),
        ({"response_format": "verbose_json"}, "response_format: "),
        ({"temperature": "hot"}, "temperature: expected float, got str"),
        ({"temperature": "-1"}, "temperature: must be at least 0"),
        ({"stream": "true"}, "stream: "),
        ({"timestamp_granularities[]": "word"}, "timestamp_granularities: "),
    ],
)
def test_what_is_refused(ear: Served, fields: dict[str, str], reason: str) -> None:
    response = send(ear, **fields)
    assert response.status_code == 400 and reason in response.json()["error"]["message"], response.text


def test_what_is_no_sound(ear: Served, served: Served) -> None:
    assert "file: is no sound that is known here" in send(ear, png()).json()["error"]["message"]
    assert "file: is an empty file" in send(ear, b"").json()["error"]["message"]
    response = ear.http.post(PATH, content=b"--x--\r\n", headers={"content-type": "multipart/form-data; boundary=x"})
    assert response.status_code == 400 and "file: is missing" in response.text
    response = ear.http.post(PATH, files={"sound": ("a.wav", WAV)})
    assert response.status_code == 400 and "sound: is a file; send the sound as the file `file`" in response.text
    response = ear.http.post(PATH, content=b"--x\r\n", headers={"content-type": "multipart/form-data"})
    assert response.status_code == 400
    response = send(served)
    assert response.status_code == 400 and "file: this model takes no sound" in response.text
