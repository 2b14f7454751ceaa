"""Responses that several servers share through a real Redis, which comes and goes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis as client
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st

from locallab import redis_link
from locallab.errors import UnknownResponse
from locallab.keys import KeyStore
from locallab.server.dialects.responses import kept as kept_module
from locallab.server.dialects.responses import redis_store
from locallab.server.dialects.responses.kept import KeptResponses
from locallab.server.dialects.responses.redis_store import RedisStore
from locallab.server.dialects.responses.store import Owner, ResponseStore
from tests.support.fake_engine import TEXT
from tests.support.http_server import Served, start_in
from tests.support.redis_server import redis
from tests.support.wait import PATIENCE, free_port, until

OWNERS = (None, "0" * 64)
NAMES = ("a", "b/x", "ü \x00", "d", "e")
ITEMS = ("i", "j/", "\n")


def body(name: str, previous: str | None, text: str = "") -> dict[str, Any]:
    return {"id": name, "previous_response_id": previous, "output": [{"id": f"msg_{name}", "text": text}]}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with redis(free_port()) as url:
        yield url


Step = tuple[str, Owner, str, str | None, list[str], int]
steps = st.lists(
    st.tuples(
        st.sampled_from(["put", "put", "put", "get", "remove", "conversation", "inputs", "items"]),
        st.sampled_from(OWNERS),
        st.sampled_from(NAMES),
        st.none() | st.sampled_from(NAMES),
        st.lists(st.sampled_from(ITEMS), max_size=2),
        st.integers(0, 300),
    ),
    max_size=40,
)


async def outcome(kept: KeptResponses, step: Step, number: int) -> Any:
    kind, owner, name, previous, items, size = step
    try:
        if kind == "put":
            before = previous if previous and NAMES.index(previous) < NAMES.index(name) else None  # no circles
            return await kept.put(owner, body(name, before, "x" * size), [number, *({"id": each} for each in items)])
        if kind == "items":
            return await kept.items(owner, [*ITEMS, f"msg_{name}"])
        return await getattr(kept, kind)(owner, name)
    except UnknownResponse as error:
        return error.response_id


@hypothesis(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(steps, st.sampled_from([1, 300, 1 << 20]))
def test_redis_keeps_what_memory_keeps(url: str, monkeypatch: pytest.MonkeyPatch, steps: list[Step], slice_bytes: int) -> None:
    async def scenario() -> None:
        bounds = {"most": 5, "most_bytes": 1500}
        connection = redis_link.connect_async(url)
        await connection.flushdb()
        memory = ResponseStore(**bounds)
        alone = KeptResponses(memory)
        # Two servers, whose own memory keeps nothing: all that they find is in Redis.
        shared = [KeptResponses(ResponseStore(0), RedisStore(connection, **bounds)) for _ in range(2)]
        for number, step in enumerate(steps):
            assert await outcome(alone, step, number) == await outcome(shared[number % 2], step, number), step
            assert await connection.zcard("locallab:responses") == len(memory)
            assert int(await connection.hget("locallab:responses:sizes", "total") or 0) == memory._bytes
        for owner, response_id in list(memory._kept):
            await shared[0].remove(owner, response_id)
        assert await connection.keys("*") == []
        await connection.aclose()

    monkeypatch.setattr(redis_store, "SLICE", slice_bytes)
    asyncio.run(scenario())


def test_what_redis_has_evicted_itself_is_not_found_and_does_not_count(url: str) -> None:
    async def scenario() -> None:
        connection = redis_link.connect_async(url)
        await connection.flushdb()
        store = RedisStore(connection, most=2)
        kept = KeptResponses(ResponseStore(0), store)
        await kept.put(None, body("a", None), [{"id": "same", "of": "a"}])
        await kept.put(None, body("b", "a"), [{"id": "same", "of": "b"}])
        await connection.delete("locallab:response:-/b")
        assert await kept.items(None, ["same", "msg_b"]) == {"same": {"id": "same", "of": "a"}}
        with pytest.raises(UnknownResponse):
            await kept.get(None, "b")
        assert await connection.zcard("locallab:responses") == 1
        await connection.delete("locallab:responses:sizes")
        await kept.put(None, body("c", "a"), [])
        assert len(await kept.conversation(None, "c")) == 3
        await connection.aclose()

    asyncio.run(scenario())


@contextlib.contextmanager
def two_servers(tmp_path: Path, url: str) -> Iterator[tuple[Served, Served, list[dict[str, str]]]]:
    """Yield two servers with the same two keys, and the headers with these."""
    for name in "ab":
        (tmp_path / name).mkdir()
    keys = KeyStore(tmp_path / "a" / "keys.json")
    headers = [{"x-api-key": keys.create(name, "free")[1]} for name in ("mine", "yours")]
    (tmp_path / "b" / "keys.json").write_bytes(keys.path.read_bytes())
    with start_in(tmp_path / "a")(redis_url=url) as first, start_in(tmp_path / "b")(redis_url=url) as second:
        yield first, second, headers


def create(served: Served, headers: dict[str, str], **fields: Any) -> str:
    """Return the id of a new response."""
    answer = served.http.post("/v1/responses", json={"model": "any", "input": "hi", **fields}, headers=headers)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def status(served: Served, response_id: str, headers: dict[str, str]) -> int:
    return served.http.get(f"/v1/responses/{response_id}", headers=headers).status_code


def test_every_server_knows_what_another_has_answered(url: str, tmp_path: Path) -> None:
    with two_servers(tmp_path, url) as (first, second, (mine, yours)):
        one = create(first, mine, input=[{"role": "user", "content": "hello"}])
        two = create(second, mine, previous_response_id=one)
        prompt = second.engine.submitted[-1][0]
        assert prompt.index("hello") < prompt.index(TEXT) < prompt.index("hi<")
        found = first.http.get(f"/v1/responses/{two}", headers=mine).json()
        assert (found["id"], found["previous_response_id"]) == (two, one)
        said = first.http.get(f"/v1/responses/{two}/input_items", headers=mine).json()["data"]
        assert [item["role"] for item in said] == ["user", "assistant", "user"]
        create(second, mine, input=[{"type": "item_reference", "id": said[1]["id"]}, {"role": "user", "content": "go on"}])
        for served in (first, second):
            assert [status(served, one, headers) for headers in (mine, yours, {})] == [200, 404, 401]
            assert served.http.delete(f"/v1/responses/{one}", headers=yours).status_code == 404
        assert second.http.delete(f"/v1/responses/{one}", headers=mine).status_code == 200
        assert [status(served, one, mine) for served in (first, second)] == [404, 404]


def test_the_end_of_a_stream_comes_when_every_server_knows_the_response(url: str, tmp_path: Path) -> None:
    with two_servers(tmp_path, url) as (first, second, (mine, _)):
        for _ in range(5):
            request = {"model": "any", "input": "hi", "stream": True}
            with first.http.stream("POST", "/v1/responses", json=request, headers=mine) as stream:
                for line in stream.iter_lines():
                    if line.startswith("data: ") and '"response.completed"' in line:
                        assert status(second, json.loads(line[6:])["response"]["id"], mine) == 200


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the beginnings of the warnings about responses; what else is shared has its own."""
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    return [text.partition(" (")[0] for text in said if "responses" in text]


BACK = "Redis is back: responses are shared again"


def test_without_redis_each_server_has_its_own_until_it_is_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_link, "PAUSE", 0.05)
    port, kept = free_port(), ("--appendonly", "yes", "--appendfsync", "always", "--dir", str(tmp_path))
    with contextlib.ExitStack() as running:
        url = running.enter_context(redis(port, *kept))
        with two_servers(tmp_path, url) as (first, second, (mine, _)):
            before, gone = create(first, mine), create(first, mine)
            running.close()
            assert status(first, before, mine) == 200 and status(second, before, mine) == 404
            after = create(first, mine, previous_response_id=before)
            assert status(first, after, mine) == 200
            assert [first.http.delete(f"/v1/responses/{gone}", headers=mine).status_code for _ in range(2)] == [200, 404]
            assert warnings(caplog) == ["Redis fails"] * 2  # one of each server
            with redis(port, *kept):
                until(lambda: warnings(caplog).count(BACK) == 2)
                assert [status(served, each, mine) for served in (first, second) for each in (before, gone, after)] == [
                    *(200, 404, 200),
                    *(200, 404, 200),
                ]
                create(second, mine, previous_response_id=after)
    assert len(warnings(caplog)) == 4


def test_a_redis_that_does_not_answer_holds_up_no_request_twice(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        with start_in(tmp_path)(redis_url=url, api_key="key") as served:
            key = {"x-api-key": "key"}
            begun = time.monotonic()
            kept = create(served, key)
            assert redis_link.PATIENCE <= time.monotonic() - begun < PATIENCE
            monkeypatch.setattr(redis_link, "PATIENCE", 2 * PATIENCE)
            assert status(served, kept, key) == 200 and create(served, key, previous_response_id=kept)
            assert time.monotonic() - begun < PATIENCE
    assert warnings(caplog) == ["Redis fails"]


def test_what_redis_refuses_is_no_reason_to_stay_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Redis that takes nothing, here one without room, is tried again; each response that it refused stays here."""
    monkeypatch.setattr(redis_link, "PAUSE", 0.05)
    with redis(free_port()) as url, client.Redis.from_url(url) as admin, start_in(tmp_path)(redis_url=url) as served:
        admin.config_set("maxmemory", 1)
        refused = create(served, {})
        assert status(served, refused, {}) == 200
        until(lambda: warnings(caplog).count(BACK) == 1)
        admin.config_set("maxmemory", 0)
        until(lambda: warnings(caplog)[-1:] == [BACK])
        assert status(served, create(served, {}), {}) == 200


def test_many_unsent_changes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        monkeypatch.setattr(kept_module, "MOST_UNSENT", 3)
        connection = redis_link.connect_async(f"redis://127.0.0.1:{free_port()}/0")
        kept = KeptResponses(ResponseStore(), RedisStore(connection))
        for number in range(9):
            await kept.put(None, body(str(number), None), [])
        assert len(kept._unsent) == 3 and await kept.get(None, "0")
        await kept.close()

    asyncio.run(scenario())
