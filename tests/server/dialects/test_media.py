"""Pictures and sounds in every dialect, for a model that takes them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from locallab.media import address
from locallab.media.attachment import digest
from locallab.media.marker import MARKER
from tests.support.http_server import Serve, Served, only_prompt, start_in
from tests.support.media_files import damaged, drawn, encoded, flac, png, saved, url, wav

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>"
ENGINE = {"template": TEMPLATE, "modalities": ("text", "image", "audio"), "context": 4096}
PNG, JPEG, WAV = png(), saved(drawn(), "JPEG"), wav()
SEEN, TOO, HEARD = f"<image {digest(PNG)[:8]}>", f"<image {digest(JPEG)[:8]}>", f"<audio {digest(WAV)[:8]}>"
DATA = url(PNG)

IMAGE_URL = {"type": "image_url", "image_url": {"url": DATA, "detail": "low"}}
SOURCE = {"type": "base64", "media_type": "image/png", "data": encoded(PNG)}
TEXT = {"type": "text", "text": "what is it?"}
ASKED = f"<user>{SEEN}what is it?\n"


def said(*parts: Any, role: str = "user", **more: Any) -> list[dict[str, Any]]:
    return [{"role": role, "content": list(parts), **more}]


CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
SENT: dict[str, tuple[str, dict[str, Any], str]] = {
    "a chat": ("/v1/chat/completions", {"messages": said(IMAGE_URL, TEXT)}, ASKED),
    "an address as text": (
        "/v1/chat/completions",
        {"messages": said({"type": "image_url", "image_url": DATA}, TEXT)},
        ASKED,
    ),
    "base64 alone": (
        "/v1/chat/completions",
        {"messages": said({"type": "image_url", "image_url": {"url": encoded(PNG)}}, TEXT)},
        ASKED,
    ),
    "between texts": (
        "/v1/chat/completions",
        {"messages": said({"type": "text", "text": "a"}, {"type": "text", "text": "b"}, IMAGE_URL, TEXT)},
        f"<user>a\nb{SEEN}what is it?\n",
    ),
    "a sound": (
        "/v1/chat/completions",
        {"messages": said({"type": "input_audio", "input_audio": {"data": encoded(WAV), "format": "wav"}}, TEXT)},
        f"<user>{HEARD}what is it?\n",
    ),
    "a file of a chat": (
        "/v1/chat/completions",
        {"messages": said({"type": "file", "file": {"file_data": DATA, "filename": "a.png"}}, TEXT)},
        ASKED,
    ),
    "a tool's result in a chat": (
        "/v1/chat/completions",
        {
            "messages": [
                {"role": "user", "content": "look"},
                {"role": "assistant", "tool_calls": [CALL]},
                *said({"type": "text", "text": "seen:"}, IMAGE_URL, role="tool", tool_call_id="c1"),
            ]
        },
        f"<tool>seen:{SEEN}\n",
    ),
    "a history": (
        "/v1/chat/completions",
        {"messages": [*said(IMAGE_URL), {"role": "assistant", "content": "a dot"}, {"role": "user", "content": "sure?"}]},
        f"<user>{SEEN}\n<assistant>a dot\n<user>sure?\n",
    ),
    "Responses": (
        "/v1/responses",
        {"input": said({"type": "input_image", "image_url": DATA, "detail": "high"}, {"type": "input_text", "text": "?"})},
        f"<user>{SEEN}?\n",
    ),
    "a file of Responses": (
        "/v1/responses",
        {"input": said({"type": "input_file", "file_data": url(WAV, "audio/wav"), "filename": "a.wav"})},
        f"<user>{HEARD}\n",
    ),
    "a tool's result in Responses": (
        "/v1/responses",
        {
            "input": [
                {"role": "user", "content": "look"},
                {"type": "function_call", "call_id": "c1", "name": "look", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_image", "image_url": DATA}]},
            ]
        },
        f"<tool>{SEEN}\n",
    ),
    "Anthropic": ("/v1/messages", {"max_tokens": 9, "messages": said({"type": "image", "source": SOURCE}, TEXT)}, ASKED),
    "a tool's result of Anthropic's": (
        "/v1/messages",
        {
            "max_tokens": 9,
            "messages": [
                {"role": "user", "content": "look"},
                *said({"type": "tool_use", "id": "t1", "name": "look", "input": {}}, role="assistant"),
                *said({"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "image", "source": SOURCE}]}),
            ],
        },
        f"<tool>{SEEN}\n",
    ),
    "Ollama": (
        "/api/chat",
        {"messages": [{"role": "user", "content": "what is it?", "images": [encoded(PNG)]}]},
        ASKED,
    ),
    "Ollama's prompt": (
        "/api/generate",
        {"prompt": "what is it?", "images": [encoded(PNG), encoded(JPEG)]},
        f"{SEEN}{TOO}what",
    ),
    "Ollama's raw prompt": ("/api/generate", {"prompt": "it", "raw": True, "images": [encoded(PNG)]}, f"<s>{SEEN}it"),
    "a chat of our own": ("/chat", {"messages": [{"role": "user", "content": "what is it?"}], "images": [DATA]}, ASKED),
    "parts in a chat of our own": ("/chat", {"messages": said(IMAGE_URL, TEXT)}, ASKED),
    "a prompt of our own": ("/generate", {"prompt": "It is", "images": [encoded(PNG)]}, f"<s>{SEEN}It is"),
    "a prompt as a message": ("/generate", {"prompt": "what is it?", "images": [DATA], "chat_template": True}, ASKED),
    "the assistant": ("/api/v1/assistant/chat", {"prompt": "what is it?", "images": [DATA]}, ASKED),
    "the assistant's history": (
        "/api/v1/assistant/chat",
        {"prompt": "and now?", "history": said(IMAGE_URL), "images": [encoded(JPEG)]},
        f"<user>{SEEN}\n<user>{TOO}and now?\n",
    ),
}


@pytest.fixture(scope="module")
def shared_eye(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with start_in(tmp_path_factory.mktemp("eye"))(engine=ENGINE) as served:
        yield served


@pytest.fixture
def eye(shared_eye: Served) -> Served:
    """A model that sees and hears."""
    shared_eye.engine.reset()
    return shared_eye


@pytest.mark.parametrize(("path", "body", "prompt"), SENT.values(), ids=SENT)
def test_each_dialect_takes_them(eye: Served, path: str, body: dict[str, Any], prompt: str) -> None:
    response = eye.http.post(path, json={"stream": False, **body})
    assert response.status_code == 200, response.text
    asked = only_prompt(eye)
    assert prompt in asked and MARKER not in asked and "not shown" not in asked
    assert "x-locallab-notes" not in response.headers


def test_a_stream_takes_them_too(eye: Served) -> None:
    with eye.http.stream("POST", "/v1/chat/completions", json={"stream": True, "messages": said(IMAGE_URL, TEXT)}) as response:
        assert "data: [DONE]" in response.read().decode()
    assert ASKED in only_prompt(eye)


def test_the_order_is_that_of_the_prompt(eye: Served) -> None:
    """Results come behind their calls, wherever a client has put them."""
    calls = [{**CALL, "id": each} for each in ("c1", "c2")]
    messages = [
        {"role": "user", "content": "look"},
        {"role": "assistant", "tool_calls": calls},
        *said({"type": "image_url", "image_url": url(JPEG)}, role="tool", tool_call_id="c2"),
        *said(IMAGE_URL, role="tool", tool_call_id="c1"),
    ]
    assert eye.http.post("/v1/chat/completions", json={"messages": messages}).status_code == 200
    prompt = only_prompt(eye)
    assert prompt.index(SEEN) < prompt.index(TOO)


@pytest.mark.parametrize(
    ("path", "body", "count"),
    [
        ("/v1/messages/count_tokens", {"messages": said({"type": "image", "source": SOURCE}, TEXT)}, "input_tokens"),
        ("/v1/responses/input_tokens", {"input": said({"type": "input_image", "image_url": DATA}, TEXT)}, "input_tokens"),
        ("/v1/chat/completions/input_tokens", {"messages": said(IMAGE_URL, TEXT)}, "input_tokens"),
        ("/tokenize", {"messages": said(IMAGE_URL, TEXT)}, "count"),
    ],
)
def test_tokens_are_counted_with_them(eye: Served, path: str, body: dict[str, Any], count: str) -> None:
    response = eye.http.post(path, json=body)
    assert response.status_code == 200, response.text
    found = response.json()
    assert found[count] == 1 + len("<user>") + 1 + len("what is it?\n<assistant>")


def test_a_rendered_prompt_tells_nobody_how_markers_look(eye: Served) -> None:
    prompt = eye.http.post("/apply-template", json={"messages": said(IMAGE_URL, TEXT)}).json()["prompt"]
    assert prompt == "<user><__media__>what is it?\n<assistant>"


def test_a_text_like_a_marker_is_text(eye: Served) -> None:
    texts = [f"{MARKER}0000", MARKER, f"{MARKER}0007"]
    messages = [*said(*texts), *said(IMAGE_URL, *texts, {"type": "text", "text": f"{MARKER}0000"})]
    assert eye.http.post("/v1/chat/completions", json={"messages": messages}).status_code == 200
    assert only_prompt(eye).count(SEEN) == 1


BAD: dict[str, tuple[Any, str]] = {
    "no base64": (
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,?"}},
        "content[0].image_url.url: expected base64",
    ),
    "no picture": ({"type": "image_url", "image_url": url(b"hello")}, "content[0].image_url: is no picture"),
    "empty": ({"type": "image_url", "image_url": ""}, "content[0].image_url: is an empty file"),
    "by an id": ({"type": "input_image", "file_id": "file-1"}, "content[0].file_id: has no file in it"),
    "of nothing": ({"type": "image"}, "content[0].image: has no file in it"),
    "an address": (
        {"type": "image_url", "image_url": "https://example.org/a.png"},
        "(--allow-media-urls); send the file itself",
    ),
    "a sound for a picture": ({"type": "image_url", "image_url": url(WAV)}, "content[0].image_url: is no picture"),
    "a picture for a sound": ({"type": "input_audio", "input_audio": {"data": encoded(PNG)}}, "input_audio.data: is no sound"),
    "a file of Anthropic's": ({"type": "image", "source": {"type": "file", "file_id": "f"}}, "content[0].image: has no file"),
}


@pytest.mark.parametrize(("block", "reason"), BAD.values(), ids=BAD)
def test_a_bad_one_is_refused_by_name(eye: Served, block: Any, reason: str) -> None:
    for path, body in (
        ("/v1/chat/completions", {"messages": said(block)}),
        ("/v1/messages", {"messages": said(block), "max_tokens": 5}),
        ("/v1/responses", {"input": said(block)}),
    ):
        response = eye.http.post(path, json=body)
        assert response.status_code == 400 and reason in response.json()["error"]["message"], response.text
    assert eye.engine.submitted == []


@pytest.mark.parametrize("block", [block for block, _ in BAD.values()], ids=BAD)
def test_a_bad_one_in_a_history_is_no_dead_end(eye: Served, block: Any) -> None:
    messages = [*said(block, TEXT), {"role": "assistant", "content": "?"}, {"role": "user", "content": "go on"}]
    response = eye.http.post("/v1/chat/completions", json={"messages": messages})
    assert response.status_code == 200, response.text
    assert "not shown]" in only_prompt(eye) and "messages[0].content[0]" in response.headers["x-locallab-notes"]


def test_pictures_of_fields_are_refused_by_name(eye: Served) -> None:
    for path, body, field in (
        ("/api/generate", {"prompt": "x"}, "images[1]"),
        ("/generate", {"prompt": "x"}, "images[1]"),
        ("/chat", {"messages": [{"role": "user", "content": "x"}]}, "images[1]"),
        ("/api/v1/assistant/debug", {"prompt": "x"}, "images[1]"),
        ("/api/chat", {"messages": [{"role": "user", "content": "x", "images": [encoded(PNG), "!"]}]}, "messages[0].images[1]"),
    ):
        response = eye.http.post(path, json={"images": [encoded(PNG), "!"], **body})
        assert response.status_code == 400 and f"{field}: expected base64" in response.text
    response = eye.http.post("/api/v1/assistant/generate", json={"prompt": "x", "suffix": "y", "images": [DATA]})
    assert response.status_code == 400 and "images: cannot be combined with suffix" in response.text
    response = eye.http.post("/chat", json={"messages": [{"role": "system", "content": "x"}], "images": [DATA]})
    assert response.status_code == 400 and "images: belong to the user's last message" in response.text


def test_a_prompt_with_them_is_not_cut(eye: Served) -> None:
    response = eye.http.post("/v1/chat/completions", json={"messages": said(IMAGE_URL), "truncate_prompt_tokens": 5})
    assert response.status_code == 400 and "truncate_prompt_tokens: cannot be combined with pictures" in response.text


BOUNDS = {
    "media_bytes": (50, "content[0].image_url.url: is larger than 50 bytes (--media-bytes)"),
    "media_pixels": (10, "content[0].image_url.url: has more than 10 pixels; send it scaled down (--media-pixels)"),
    "media_count": (1, "content[1].image_url.url: is one too many: a request may have 1 (--media-count)"),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_each_bound_is_named(serve: Serve, name: str) -> None:
    value, reason = BOUNDS[name]
    with serve(engine=ENGINE, **{name: value}) as served:
        response = served.http.post("/v1/chat/completions", json={"messages": said(IMAGE_URL, IMAGE_URL)})
        assert response.status_code == 400 and response.json()["error"]["message"].endswith(reason)
        said_before = [*said(IMAGE_URL, IMAGE_URL), {"role": "assistant", "content": "ok"}, {"role": "user", "content": "x"}]
        response = served.http.post("/v1/chat/completions", json={"messages": said_before})
        assert response.status_code == (400 if name == "media_count" else 200)


def test_the_length_of_a_sound_is_bounded(serve: Serve) -> None:
    block = {"type": "input_audio", "input_audio": {"data": encoded(flac(1)), "format": "flac"}}
    with serve(engine=ENGINE, media_seconds=0.5) as served:
        response = served.http.post("/v1/chat/completions", json={"messages": said(block)})
        assert response.status_code == 400 and "sounds may last 0.5 s (--media-seconds)" in response.text


def test_a_model_that_only_sees_takes_no_sound(serve: Serve) -> None:
    block = {"type": "input_audio", "input_audio": {"data": encoded(WAV), "format": "wav"}}
    with serve(engine={**ENGINE, "modalities": ("text", "image")}) as served:
        response = served.http.post("/v1/chat/completions", json={"messages": said(block)})
        assert response.status_code == 400 and response.json()["error"]["message"] == (
            "messages[0].content: this model takes no sound"
        )
        answered = [*said(block, IMAGE_URL), {"role": "assistant", "content": "ok"}, {"role": "user", "content": "x"}]
        assert served.http.post("/v1/chat/completions", json={"messages": answered}).status_code == 200
        assert f"[audio: wav, 3.25 kB, not shown]{SEEN}" in only_prompt(served)


@pytest.mark.parametrize(
    ("path", "body", "reason"),
    [
        ("/v1/chat/completions", {"messages": said(IMAGE_URL)}, "messages[0].content: this model takes no images"),
        ("/api/generate", {"prompt": "x", "images": [encoded(PNG)]}, "images: this model takes no images"),
        ("/api/generate", {"images": [encoded(PNG)]}, "images: this model takes no images"),
        (
            "/api/chat",
            {"messages": [{"role": "user", "content": "x", "images": [DATA]}]},
            "messages[0].images: this model takes",
        ),
        ("/generate", {"prompt": "x", "images": [DATA]}, "images: this model takes no images"),
        ("/chat", {"messages": [{"role": "user", "content": "x"}], "images": [DATA]}, "images: this model takes no images"),
        ("/api/v1/assistant/chat", {"prompt": "x", "images": [DATA]}, "images: this model takes no images"),
    ],
)
def test_a_model_of_texts_says_so(served: Served, path: str, body: dict[str, Any], reason: str) -> None:
    response = served.http.post(path, json=body)
    assert response.status_code == 400 and reason in response.text


def test_bodies_may_be_larger_where_pictures_are_taken(serve: Serve) -> None:
    large = {"messages": [{"role": "user", "content": "x"}], "metadata": "x" * (9 << 20)}
    with serve(engine=ENGINE) as served:
        assert served.http.post("/v1/chat/completions", json=large).status_code == 200
    with serve(engine=ENGINE, media_bytes=1 << 20) as served:
        response = served.http.post("/v1/chat/completions", json={**large, "metadata": "x" * (11 << 20)})
        assert response.status_code == 413 and "larger than 10 MiB" in response.text
    with serve() as served:
        response = served.http.post("/v1/chat/completions", json=large)
        assert response.status_code == 413 and "larger than 8 MiB" in response.text


def test_the_event_loop_goes_on_while_a_large_one_is_read(eye: Served) -> None:
    """Bytes are decoded in a thread: other requests do not wait for them."""
    data = url(PNG + bytes(15 << 20))
    done = threading.Event()

    def send() -> None:
        with httpx.Client(base_url=eye.url, timeout=60) as client:
            assert client.post(
                "/v1/chat/completions", json={"messages": said({"type": "image_url", "image_url": data})}
            ).is_success
        done.set()

    thread = threading.Thread(target=send)
    thread.start()
    while not done.is_set():
        assert eye.http.get("/health/live").is_success
    thread.join()


@pytest.fixture
def nearby(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server of pictures on loopback, which counts as public."""
    fetch = address.Fetcher.fetch
    monkeypatch.setattr(
        address.Fetcher, "fetch", lambda self, *args: fetch(address.Fetcher(allowed=lambda found: True, seconds=5), *args)
    )
    ready, stop, found = threading.Event(), threading.Event(), list[str]()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = (await reader.readuntil(b"\r\n\r\n")).split(b" ")[1]
        body = PNG if path == b"/a.png" else JPEG
        status = b"404 Not Found" if path == b"/none" else b"200 OK"
        head = b"HTTP/1.1 %b\r\ncontent-type: image/png\r\ncontent-length: %d\r\n\r\n" % (status, len(body))
        writer.write(head + body)
        await writer.drain()
        writer.close()

    async def serve() -> None:
        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        found.append(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        ready.set()
        await asyncio.to_thread(stop.wait)
        server.close()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert ready.wait(30)
    yield found[0]
    stop.set()
    thread.join()


def test_addresses_are_fetched_if_the_server_may(serve: Serve, nearby: str) -> None:
    def block(path: str) -> dict[str, Any]:
        return {"type": "image_url", "image_url": {"url": nearby + path}}

    with serve(engine=ENGINE, allow_media_urls=True) as served:
        response = served.http.post("/v1/chat/completions", json={"messages": said(block("/a.png"), block("/b"), IMAGE_URL)})
        assert response.status_code == 200, response.text
        assert f"<user>{SEEN}{TOO}{SEEN}\n" in only_prompt(served)
        source = {"type": "image", "source": {"type": "url", "url": f"{nearby}/a.png"}}
        assert served.http.post("/v1/messages", json={"max_tokens": 5, "messages": said(source)}).status_code == 200
        assert served.http.post("/generate", json={"prompt": "x", "images": [f"{nearby}/a.png"]}).status_code == 200
        assert all(SEEN in prompt for prompt, _ in served.engine.submitted)
        response = served.http.post("/v1/chat/completions", json={"messages": said(block("/none"))})
        assert response.status_code == 400
        assert "messages[0].content[0].image_url.url: is answered with the status 404" in response.text
        before = [*said(block("/none")), {"role": "assistant", "content": "?"}, {"role": "user", "content": "x"}]
        response = served.http.post("/v1/chat/completions", json={"messages": before})
        assert response.status_code == 200 and "404" in response.headers["x-locallab-notes"]


def test_no_address_of_this_machine_is_fetched(serve: Serve) -> None:
    with serve(engine=ENGINE, allow_media_urls=True) as served:
        for target in (f"{served.url}/metrics", "http://169.254.169.254/latest/meta-data/", "http://localhost:1/"):
            block = {"type": "image_url", "image_url": target}
            response = served.http.post("/v1/chat/completions", json={"messages": said(block)})
            assert response.status_code == 400 and "leads to a host outside the public internet" in response.text


def test_damaged_files_are_refused_or_taken(eye: Served) -> None:
    files = [PNG, JPEG, WAV, flac()]

    @settings(max_examples=60)
    @given(st.integers(0, 3), st.integers(0, 10**9), st.booleans())
    def check(which: int, seed: int, heard: bool) -> None:
        data = encoded(damaged(files[which], seed))
        block = {"type": "input_audio", "input_audio": {"data": data}} if heard else {"type": "image_url", "image_url": data}
        response = eye.http.post("/v1/chat/completions", json={"messages": said(block), "max_tokens": 1})
        assert response.status_code in (200, 400), response.text

    check()


LISTS = {
    "/v1/models": lambda found: found["data"][0]["modalities"],
    "/v1/models/tiny:1b": lambda found: found["modalities"],
    "/models/available": lambda found: found["models"][0]["modalities"],
    "/models/status/tiny:1b": lambda found: found["modalities"],
    "/models/current": lambda found: found["modalities"],
}


@pytest.mark.parametrize("path", LISTS)
def test_every_list_of_models_says_what_they_take(eye: Served, served: Served, path: str) -> None:
    assert LISTS[path](eye.http.get(path).json()) == ["text", "image", "audio"]
    assert LISTS[path](served.http.get(path).json()) == ["text"]


def test_the_lists_of_other_dialects(eye: Served, served: Served) -> None:
    assert eye.http.get("/props").json()["modalities"] == {"vision": True, "audio": True}
    assert served.http.get("/props").json()["modalities"] == {"vision": False, "audio": False}
    of = [each.http.post("/api/show", json={"model": "tiny:1b"}).json()["capabilities"] for each in (eye, served)]
    assert of[0] == [*of[1], "vision", "audio"] and "vision" not in of[1]
    headers = {"anthropic-version": "2023-06-01"}
    sees = [each.http.get("/v1/models", headers=headers).json()["data"][0]["capabilities"] for each in (eye, served)]
    assert [each["image_input"]["supported"] for each in sees] == [True, False]


def test_pictures_have_no_text(eye: Served) -> None:
    body = {"messages": said(IMAGE_URL, TEXT), "return_token_strs": True}
    found = eye.http.post("/tokenize", json=body).json()
    assert "".join(found["token_strs"]) == "<s><user>what is it?\n<assistant>" and len(found["tokens"]) == len(
        found["token_strs"]
    )
    assert [token for token in found["tokens"] if token < 0] == [-1 - int(digest(PNG)[:7], 16)]
