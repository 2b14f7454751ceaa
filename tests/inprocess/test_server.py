from __future__ import annotations

import asyncio
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

import locallab
from locallab.errors import (
    ConfigError,
    EngineClosed,
    LocalLabError,
    ModelLoadError,
    TunnelError,
    UnknownModel,
)
from locallab.keys import KeyStore
from locallab.server.listener import bind
from locallab.settings import ServerSettings
from tests.support.certificates import issue
from tests.support.fake_tunnel import TOKEN, FakeNgrok

ASKED = [{"role": "user", "content": "Write the alphabet."}]

MINE = "mine-and-long-enough"


@pytest.fixture(scope="module")
def server(model_path: Path) -> Iterator[locallab.Server]:
    with locallab.start(str(model_path), context=512, threads=2, grace=0) as server:
        yield server


def test_a_server_answers_an_openai_client(server: locallab.Server) -> None:
    assert server.api_key is None
    assert server.url == server.local_url and not server.url.endswith(":8000")
    with server.openai(max_retries=0) as client:
        answer = client.chat.completions.create(model=server.model, messages=ASKED, max_tokens=4)  # type: ignore[arg-type]
    assert answer.choices[0].message.content
    assert repr(server) == f"<locallab server of {server.model} at {server.url}>"
    assert httpx.get(f"{server.url}/system/info").json()["tunnel"] is None


def test_two_at_once_within_a_running_event_loop_and_stopping_leaves_nothing(server: locallab.Server, model_path: Path) -> None:
    before = {thread.name for thread in threading.enumerate()}

    async def notebook() -> locallab.Server:
        with locallab.start(str(model_path), context=512, threads=1) as other:
            assert other.url != server.url
            engine = other._pool.loaded[0].engine
            async with httpx.AsyncClient() as client:
                assert (await client.get(f"{other.url}/health/ready")).status_code == 200
        with pytest.raises(EngineClosed):
            engine.tokenize("a", add_special=False, parse_special=False)
        return other

    stopped = asyncio.run(notebook())
    stopped.stop()
    assert {thread.name for thread in threading.enumerate()} <= before
    with pytest.raises(httpx.ConnectError):
        httpx.get(stopped.url)


def test_where_there_are_keys_one_is_made_for_this_server_only(model_path: Path) -> None:
    KeyStore().create("somebody", "free")
    with locallab.start(str(model_path), context=512, threads=1) as server:
        assert httpx.get(f"{server.url}/v1/models").status_code == 401
        assert server.api_key and server.api_key not in repr(server)
        with server.openai() as client:
            assert client.models.list().data[0].id == server.model
    assert [key.name for key in KeyStore().read()] == ["somebody"]


@pytest.mark.parametrize("address", ["socket", "certificate"])
def test_other_addresses(model_path: Path, tmp_path: Path, address: str) -> None:
    certificate = issue(tmp_path, "localhost")
    settings = {"uds": str(tmp_path / "x.sock")} if address == "socket" else certificate.settings()
    with locallab.start(str(model_path), context=512, threads=1, **settings) as server:
        assert server.url.startswith(f"unix:{tmp_path}" if address == "socket" else "https://localhost:")
        with server.openai(max_retries=0) as client:
            assert client.models.list().data[0].id == server.model
    assert not (tmp_path / "x.sock").exists()
    with pytest.raises(ConfigError, match="uds: is an address of its own"):
        locallab.start(str(model_path), uds="x.sock", port=1)


def test_errors_come_to_the_caller_and_nothing_runs_on(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(100))
    before = {thread.name for thread in threading.enumerate()}
    with pytest.raises(ModelLoadError):
        locallab.start(str(broken))
    with pytest.raises(UnknownModel):
        locallab.start("smollm2:135")
    with bind("127.0.0.1", 0) as taken, pytest.raises(ConfigError, match="is in use"):
        taken.listen()
        locallab.start(str(broken), port=taken.getsockname()[1])
    assert {thread.name for thread in threading.enumerate()} <= before


def test_without_the_openai_package(server: locallab.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(LocalLabError, match="pip install openai"):
        server.openai()


def test_watching_prints_how_it_goes(server: locallab.Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.watch(seconds=0.05, every=0.01)
    assert re.match(r"\r\d+ answers, 0 running, 0 waiting \| 0\.0 tokens/s +\r", capsys.readouterr().out)


@pytest.fixture
def ngrok(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeNgrok:
    return FakeNgrok(tmp_path, monkeypatch)


def test_a_public_server(ngrok: FakeNgrok, model_path: Path) -> None:
    with locallab.start(str(model_path), tunnel=True, ngrok_token=TOKEN, api_key=MINE, context=512) as server:
        assert server.url != server.local_url
        assert server.api_key == MINE
        assert httpx.get(f"{server.url}/v1/models").status_code == 401
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.api_key, max_retries=0)
        with (
            client,
            client.chat.completions.create(
                model="any",
                messages=ASKED,  # type: ignore[arg-type]
                stream=True,
                max_tokens=4,
            ) as chunks,
        ):
            assert len(list(chunks)) >= 4
        info = httpx.get(f"{server.local_url}/system/info", headers={"authorization": f"Bearer {server.api_key}"}).json()
        assert server.url in server.announcement() and str(server.api_key) in server.announcement()
    assert (info["tunnel"]["url"], info["tunnel"]["state"]) == (info["public_url"], "open")
    assert info["tunnel"]["month"]["requests"] == 3
    assert info["tunnel"]["month"]["bytes_out"] > 500
    assert ngrok.running == []


def test_a_tunnel_that_fails_is_told_and_nothing_runs_on(ngrok: FakeNgrok, model_path: Path) -> None:
    ngrok.goes("limit")
    before = {thread.name for thread in threading.enumerate()}
    with pytest.raises(TunnelError, match="ERR_NGROK_108"):
        locallab.start(str(model_path), tunnel=True, ngrok_token=TOKEN, context=512, threads=1)
    assert {thread.name for thread in threading.enumerate()} <= before
    assert ngrok.running == []


def test_a_public_server_without_keys_is_refused() -> None:
    with pytest.raises(ConfigError, match="tunnel: a public address requires a key"):
        locallab.start("smollm2:135m", tunnel=True, auth=False)
    assert ServerSettings().auth
