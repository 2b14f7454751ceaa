"""`locallab serve` and keys: when one is made, and how the banner shows it."""

from __future__ import annotations

import contextlib
import re
import socket
import types
from pathlib import Path
from typing import Any

import httpx
import pytest

from locallab.cli.commands import serve
from locallab.keys import FIRST_NAME, KeyStore
from locallab.server import listener
from tests.support.cli_process import failed, serving
from tests.support.redis_server import redis
from tests.support.wait import free_port


@pytest.mark.parametrize(
    ("host", "public"), [("127.0.0.1", False), ("127.1.2.3", False), ("0.0.0.0", True), ("::1", False), ("::", True)]
)
def test_what_other_machines_can_reach(host: str, public: bool) -> None:
    if ":" in host and not socket.has_ipv6:
        pytest.skip("no IPv6")
    with contextlib.closing(listener.bind(host, 0)) as sock:
        assert listener.is_public(sock) is public


def banner(made: str | None, asks: bool) -> str:
    info = types.SimpleNamespace(description="llama", device="CPU", context=8192, kv_tokens=16384)
    loaded: Any = types.SimpleNamespace(engine=types.SimpleNamespace(info=info), spec=types.SimpleNamespace(id="m"))
    return serve.banner(loaded, "http://127.0.0.1:8000", made, asks)


def test_the_banner_shows_a_new_key_and_uses_it() -> None:
    text = banner("ll-new", True)
    assert "  key      ll-new (shown only now; `locallab keys` creates and revokes keys)\n" in text
    assert "-H 'Authorization: Bearer ll-new' -H" in text and 'api_key="ll-new"' in text


def test_the_banner_asks_for_a_key_it_does_not_know() -> None:
    text = banner(None, True)
    assert "  key  " not in text
    assert "-H 'Authorization: Bearer YOUR_KEY' -H" in text and 'api_key="YOUR_KEY"' in text


def test_the_banner_without_keys() -> None:
    assert "Authorization" not in banner(None, False) and 'api_key="none"' in banner(None, False)


def test_beyond_this_machine_without_keys_the_banner_tells_the_names(model_path: Path) -> None:
    arguments = ["--model", str(model_path), "--port", "0", "--context", "512", "--threads", "1", "--allowed-hosts", "box.lan"]
    with serving(*arguments, "--host", "0.0.0.0", "--no-auth") as (_, base, text):
        found = re.search(r"^  names    any address, (.*) \(--allowed-hosts adds others\)$", text, re.MULTILINE)
        assert found
        for name in found[1].split(", "):
            host = name.replace("*", "any")
            assert httpx.get(f"{base}/health", headers={"host": host}).status_code == 200, host
        assert "box.lan" in found[1]
        assert httpx.get(f"{base}/health", headers={"host": "other.example"}).status_code == 403


def test_beyond_this_machine_a_key_is_made_printed_and_kept(model_path: Path) -> None:
    arguments = ["--model", str(model_path), "--port", "0", "--context", "512", "--threads", "1", "--host", "0.0.0.0"]
    with serving(*arguments) as (_, base, text):
        found = re.search(r"^  key      (ll-\S+) ", text, re.MULTILINE)
        assert found
        assert httpx.get(f"{base}/v1/models").status_code == 401
        assert httpx.get(f"{base}/v1/models", headers={"authorization": f"Bearer {found[1]}"}).status_code == 200
        assert httpx.get(f"{base}/health").status_code == 200
    [key] = KeyStore().read()
    assert (key.name, key.role) == (FIRST_NAME, "admin") and found[1] not in KeyStore().path.read_text()
    with serving(*arguments) as (_, base, text):
        assert "ll-" not in text and "Bearer YOUR_KEY" in text
        assert httpx.get(f"{base}/v1/models", headers={"x-api-key": found[1]}).status_code == 200
    assert KeyStore().read() == (key,)


def test_servers_that_share_redis_share_their_first_key(model_path: Path) -> None:
    arguments = ["--model", str(model_path), "--port", "0", "--context", "512", "--threads", "1", "--host", "0.0.0.0"]
    with redis(free_port()) as url:
        with serving(*arguments, "--redis-url", url) as (_, base, text):
            found = re.search(r"^  key      (ll-\S+) ", text, re.MULTILINE)
            assert found
            assert httpx.get(f"{base}/v1/models", headers={"x-api-key": found[1]}).status_code == 200
        with serving(*arguments, "--redis-url", url) as (process, base, text):
            assert "ll-" not in text and "Bearer YOUR_KEY" in text
            for key, status in ((found[1], 200), ("any", 401)):
                assert httpx.get(f"{base}/v1/models", headers={"x-api-key": key}).status_code == status
            process.kill()
            assert process.stderr is not None
            assert f"are shared through Redis at {url[8:-2]}\n" in process.stderr.read()
    assert KeyStore().read() == ()


def test_the_single_key_may_come_from_a_file(model_path: Path, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sesame-open-sesame\n")
    arguments = ["--model", str(model_path), "--port", "0", "--context", "512", "--threads", "1", "--host", "0.0.0.0"]
    with serving(*arguments, "--api-key-file", str(tmp_path / "key")) as (_, base, text):
        assert "ll-" not in text
        assert httpx.get(f"{base}/v1/models").status_code == 401
        assert httpx.get(f"{base}/v1/models", headers={"x-api-key": "sesame-open-sesame"}).status_code == 200
    assert KeyStore().read() == ()


WRONG = {
    "native_rate": (["--native-rate", "often"], "native_rate: must be limits such as 60/minute"),
    "redis_url": (["--redis-url", "localhost"], "redis_url: must begin with redis://"),
    "root_path": (["--root-path", "llm"], "root_path: 'llm' is not a path such as /llm"),
    "trusted_proxies": (["--trusted-proxies", "*"], "trusted_proxies: '*' is not an address or network"),
    "allowed_hosts": (["--allowed-hosts", "http://x"], "allowed_hosts: 'http://x' is not a host name"),
    "cors_origins": (["--cors-origins", "x.example"], "cors_origins: 'x.example' is not an origin"),
    "api_key": (["--api-key", ""], "api_key: must be one or more ASCII characters"),
    "a short api_key": (["--api-key", "short", "--host", "0.0.0.0"], "api_key: must have 16 characters or more"),
    "api_key_file": (["--api-key-file", "/nowhere/key"], "api_key_file: /nowhere/key cannot be used: No such file"),
}


@pytest.mark.parametrize(("arguments", "reason"), WRONG.values(), ids=WRONG)
def test_wrong_settings_are_reported_before_the_model_loads(arguments: list[str], reason: str) -> None:
    status, err = failed("--port", "0", *arguments)
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith(f"locallab: {reason}")


def test_damaged_keys_are_reported_before_the_model_loads() -> None:
    KeyStore().path.write_text("{")
    status, err = failed("--port", "0")
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith(f"locallab: {KeyStore().path}: the file of API keys cannot be used")
