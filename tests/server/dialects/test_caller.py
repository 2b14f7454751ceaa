"""Whose request the engine computes, in every dialect: the key's, else the address's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from websockets.sync.client import connect

from locallab.engine import Caller
from locallab.errors import ConfigError
from locallab.keys import KeyStore
from tests.support.dialect_requests import ROUTES
from tests.support.fake_engine import FIM
from tests.support.http_server import Serve, Served
from tests.support.tiny_server import tiny_server


@pytest.mark.parametrize("path", ROUTES)
def test_every_answer_is_computed_for_its_caller(serve: Serve, tmp_path: Path, path: str) -> None:
    key, secret = KeyStore(tmp_path / "keys.json").create("alice", "pro")
    with serve(engine={"fim": FIM}) as served:
        sent = served.http.post(path, json=ROUTES[path], headers={"x-api-key": secret})
        assert sent.status_code == 200, sent.text
        assert [(each.id, each.weight) for each in served.engine.callers] == [(f"key:{key.id}", 2)]


def test_a_conversation_over_a_websocket_has_its_caller_too(serve: Serve, tmp_path: Path) -> None:
    key, secret = KeyStore(tmp_path / "keys.json").create("bob", "free")
    with serve() as served, connect(f"{served.url.replace('http', 'ws')}/api/v1/assistant/stream?api_key={secret}") as socket:
        socket.send(json.dumps({"prompt": "some words", "task": "chat"}))
        while json.loads(socket.recv(10))["type"] != "done":
            pass
        assert [(each.id, each.weight) for each in served.engine.callers] == [(f"key:{key.id}", 1)]


def test_without_a_key_callers_are_told_apart_by_the_address_that_a_trusted_proxy_reports(serve: Serve) -> None:
    with serve(trusted_proxies="127.0.0.1") as served:
        for address in ("1.2.3.4", "1.2.3.5"):
            served.http.post("/generate", json={"prompt": "hi"}, headers={"x-forwarded-for": address})
        assert served.engine.callers == [Caller(id="address:1.2.3.4"), Caller(id="address:1.2.3.5")]


def test_each_of_several_answers_counts(serve: Serve) -> None:
    with serve() as served:
        for body in ({"n": 3}, {"best_of": 4}):
            served.http.post("/v1/completions", json={"prompt": "hi", **body}).raise_for_status()
        assert served.engine.callers == [Caller(id="address:127.0.0.1")] * 7


def owners(served: Served, *secrets: str) -> list[str]:
    for secret in secrets:
        served.http.post("/generate", json={"prompt": "hi"}, headers={"x-api-key": secret}).raise_for_status()
    return [each.owner for each in served.engine.callers[-len(secrets) :]]


def test_with_several_keys_each_has_prefixes_of_its_own(serve: Serve, tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys.json")
    alice, one = store.create("alice", "pro")
    with serve() as served:
        assert owners(served, one) == [""]
        bob, two = store.create("bob", "free")
        assert owners(served, one, two, one) == [f"key:{alice.id}", f"key:{bob.id}", f"key:{alice.id}"]


def test_isolation_can_be_set(serve: Serve, tmp_path: Path) -> None:
    with serve(isolate_cache=True) as served:
        assert owners(served, "") == ["address:127.0.0.1"]
    secrets = [KeyStore(tmp_path / "keys.json").create(name, "pro")[1] for name in ("alice", "bob")]
    with serve(isolate_cache=False) as served:
        assert owners(served, *secrets) == ["", ""]


def test_shared_prompts_are_those_of_chats_and_of_plain_texts(serve: Serve, tmp_path: Path) -> None:
    files = [tmp_path / "one.txt", tmp_path / "two.txt"]
    for file, text in zip(files, ("Be brief.\n\n", "Be kind."), strict=True):
        file.write_text(text)
    template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    with serve(shared_prompts=f"{files[0]}, {files[1]}", engine={"template": template}) as served:
        texts = [text.removeprefix("<s>") for text in served.engine.shared]
        assert texts == ["Be brief.", "Be kind.", "[system]Be brief.[user]", "[system]Be kind.[user]"]


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "cannot be read: No such file"), (b"\xff", "UTF-8"), (b" \n", "is empty")]
)
def test_a_shared_prompt_that_cannot_be_used_is_named(serve: Serve, tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "prompt.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"shared_prompts: .*prompt\.txt .*{reason}"), serve(shared_prompts=str(path)):
        pass


def test_one_client_learns_nothing_of_another_but_shares_the_named_system_prompt(tmp_path: Path) -> None:
    system = "You are kind and brief, and answer in one word. " * 2
    shared = tmp_path / "system.txt"
    shared.write_text(system + "\n")
    options = {"isolate_cache": True, "shared_prompts": str(shared), "trusted_proxies": "127.0.0.1"}
    with tiny_server(tmp_path, cache_tokens=2000, **options) as served:

        def ask(address: str, *texts: str) -> tuple[int, int, str]:
            roles = ("system", "user")[-len(texts) :]
            messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
            body = {"messages": messages, "max_tokens": 1, "temperature": 0}
            answer = served.http.post("/v1/chat/completions", json=body, headers={"x-forwarded-for": address})
            usage = answer.json()["usage"]
            stop = answer.headers["x-locallab-cache"].rpartition("stop=")[2]
            return usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"], stop

        secret = "my password is 12345, keep it to yourself, please"
        total, cached, _ = ask("1.2.3.4", secret)
        assert ask("1.2.3.4", secret)[1] == total - 1
        _, cached, stop = ask("1.2.3.5", secret)
        assert cached < 20 and "evicted" not in stop and "snapshot" not in stop
        ask("1.2.3.4", system, secret)
        total, cached, _ = ask("1.2.3.5", system, "another thing")
        assert 0.4 * total < cached < total - len("another thing") / 4
