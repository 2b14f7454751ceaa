"""Rate limits per key or address and per part of the API, over HTTP and WebSocket."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import logging
import socket
import sys
import time
import types
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from hypothesis import HealthCheck, assume, given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st
from limits.aio.storage import memory
from websockets.sync.client import connect

from locallab import redis_link
from locallab.errors import ConfigError, RateLimited
from locallab.keys import Key, KeyStore
from locallab.server.middleware import rate_limit
from locallab.server.middleware.rate_limit import RateLimits, identity, parse
from locallab.settings import ServerSettings
from tests.support.echo_model import PATH, ROUTES
from tests.support.http_server import Serve, start_in
from tests.support.redis_server import redis
from tests.support.wait import free_port

FREE = Key("free one", "free", "0" * 64, 0)
PRO = Key("pro one", "pro", "1" * 64, 0)


@pytest.fixture
def store(tmp_path: Path) -> KeyStore:
    return KeyStore(tmp_path / "keys.json")


def limit_and_remaining(response: httpx.Response) -> tuple[int, int]:
    assert 0 <= int(response.headers["x-ratelimit-reset"]) - time.time() <= 3601
    return int(response.headers["x-ratelimit-limit"]), int(response.headers["x-ratelimit-remaining"])


def test_native_routes_are_counted_together_and_refused_beyond(serve: Serve) -> None:
    with serve(rate_limit=True, native_rate="3/hour") as served:
        assert limit_and_remaining(served.http.get("/models/current")) == (3, 2)
        assert limit_and_remaining(served.http.post("/generate", json={"prompt": "hi"})) == (3, 1)
        assert limit_and_remaining(served.http.post("/chat", content=b"{")) == (3, 0)
        for path in ("/system/info", "/generate"):
            refused = served.http.get(path)
            assert refused.status_code == 429 and limit_and_remaining(refused) == (3, 0)
            wait = int(refused.headers["retry-after"])
            assert 3500 < wait <= 3600
            assert abs(int(refused.headers["x-ratelimit-reset"]) - time.time() - wait) < 2
            assert refused.json() == {"detail": f"rate limit exceeded: 3 per 1 hour; try again in {wait} s"}


def test_the_shipped_limits_are_those_documented(serve: Serve, store: KeyStore) -> None:
    secrets = {tier: store.create(tier, tier)[1] for tier in ("free", "pro")}
    with serve(rate_limit=True) as served:
        sent = {tier: {"authorization": f"Bearer {secret}"} for tier, secret in secrets.items()}
        for tier, limit in (("free", 100), ("pro", 1000)):
            assert limit_and_remaining(served.http.get("/api/v1/models/available", headers=sent[tier])) == (limit, limit - 1)
            assert limit_and_remaining(served.http.get("/models/available", headers=sent[tier])) == (60, 59)
            assert "x-ratelimit-limit" not in served.http.get("/v1/models", headers=sent[tier]).headers


def test_a_burst_is_refused_and_costs_nothing_of_the_rest() -> None:
    async def scenario() -> None:
        counts, rate = RateLimits(ServerSettings()), parse("native_rate", "60/hour; 10/minute")
        for left in range(59, 49, -1):
            assert (b"x-ratelimit-remaining", str(left).encode()) in await counts.count(rate, "a")
        for _ in range(3):
            with pytest.raises(RateLimited, match="10 per 1 minute") as refused:
                await counts.count(rate, "a")
            assert (refused.value.limit, refused.value.remaining) == (60, 0)
            assert 0 < refused.value.retry_after <= 61
        await counts._memory.clear(rate[0], "a")  # the minute is over
        assert (b"x-ratelimit-remaining", b"49") in await counts.count(rate, "a")

    asyncio.run(scenario())


def test_without_keys_api_v1_has_the_free_limit(serve: Serve) -> None:
    with serve(rate_limit=True) as served:
        assert limit_and_remaining(served.http.get("/api/v1/models/available"))[0] == 100


def test_every_key_has_its_own_count(serve: Serve, store: KeyStore) -> None:
    secrets = [store.create(name, "free")[1] for name in "ab"]
    with serve(rate_limit=True, native_rate="1/hour") as served:
        for status in (200, 429):
            for secret in secrets:
                assert served.http.get("/models/current", headers={"x-api-key": secret}).status_code == status


def test_refused_keys_are_not_counted(serve: Serve, store: KeyStore) -> None:
    _, secret = store.create("a", "free")
    with serve(rate_limit=True, native_rate="1/hour") as served:
        for _ in range(3):
            refused = served.http.get("/models/current")
            assert refused.status_code == 401 and "x-ratelimit-limit" not in refused.headers
        assert limit_and_remaining(served.http.get("/models/current", headers={"x-api-key": secret})) == (1, 0)


def test_parts_of_the_api_are_counted_apart(serve: Serve) -> None:
    with serve(rate_limit=True, native_rate="1/hour", free_rate="1/hour", dialect_rate="1/hour") as served:
        for path in ("/models/current", "/api/v1/models/available", "/v1/models"):
            assert limit_and_remaining(served.http.get(path)) == (1, 0)
            assert served.http.get(path).status_code == 429


def test_a_dialect_refuses_in_its_own_words(serve: Serve) -> None:
    with serve(rate_limit=True, dialect_rate="1/hour") as served:
        assert served.openai.models.list().data
        with pytest.raises(openai.RateLimitError) as refused:
            served.openai.models.list()
        error: Any = refused.value.response.json()["error"]
        assert (error["type"], error["param"], error["code"]) == ("requests", None, "rate_limit_exceeded")
        assert error["message"].startswith("rate limit exceeded: 1 per 1 hour; try again in ")
        assert int(refused.value.response.headers["retry-after"]) > 3500


def test_what_is_free(serve: Serve) -> None:
    with serve(rate_limit=True, native_rate="1/hour", dialect_rate="1/hour", free_rate="1/hour") as served:
        for path in ("/", "/health", "/health/ready", "/health/live", "/metrics", "/docs", "/openapi.json") * 2:
            response = served.http.get(path)
            assert response.status_code != 429 and "x-ratelimit-limit" not in response.headers
        for _ in range(2):
            assert "x-ratelimit-limit" not in served.http.options("/generate").headers


def test_streams_tell_it_too(serve: Serve) -> None:
    body = {"prompt": "hi", "stream": True}
    with serve(rate_limit=True, native_rate="5/hour") as served, served.http.stream("POST", "/generate", json=body) as response:
        assert limit_and_remaining(httpx.Response(200, headers=response.headers)) == (5, 4)
        assert "data: [DONE]" in list(response.iter_lines())


def test_off(serve: Serve) -> None:
    with serve(rate_limit=False, native_rate="1/hour", routes=ROUTES) as served:
        for _ in range(3):
            response = served.http.get("/models/current")
            assert response.status_code == 200 and "x-ratelimit-limit" not in response.headers
        with connect(served.url.replace("http", "ws") + PATH) as socket:
            socket.send("hi")
            assert json.loads(socket.recv(10)) == {"text": "hi", "key": None, "query": ""}


def test_messages_of_a_websocket_are_counted_and_opening_it_is_not(serve: Serve) -> None:
    with serve(rate_limit=True, free_rate="2/hour", routes=ROUTES) as served:
        url = served.url.replace("http", "ws") + PATH
        with connect(url), connect(url) as first, connect(url) as second:
            answers = []
            for socket in (first, second, first, second):
                socket.send("hi")
                answers.append(json.loads(socket.recv(10)))
        assert [answer.get("x-ratelimit-remaining") for answer in answers] == ["1", "0", None, None]
        assert answers[3]["refused"].startswith("rate limit exceeded: 2 per 1 hour") and answers[3]["retry_after"] > 3500
        assert served.http.get("/api/v1/models/available").status_code == 429


@pytest.mark.parametrize("peers", ["127.0.0.1", "10.1.2.3, 127.0.0.0/8", "::1,127.0.0.1"])
def test_behind_a_trusted_proxy_each_client_has_its_own_count(serve: Serve, peers: str) -> None:
    with serve(rate_limit=True, native_rate="1/hour", trusted_proxies=peers) as served:

        def status(forwarded: str) -> int:
            return served.http.get("/models/current", headers={"x-forwarded-for": forwarded}).status_code

        assert [status("1.1.1.1"), status("2.2.2.2"), status("1.1.1.1")] == [200, 200, 429]
        assert (
            status("3.3.3.3, 1.1.1.1") == status("3.3.3.3, 2.2.2.2, 127.0.0.1") == 429
        )  # entries that the client adds itself do not count
        assert status("3.3.3.3") == 200


def test_without_one_nobody_can_pretend_to_be_another(serve: Serve) -> None:
    with serve(rate_limit=True, native_rate="1/hour") as served:
        statuses = [served.http.get("/models/current", headers={"x-forwarded-for": f"1.1.1.{n}"}).status_code for n in range(2)]
    assert statuses == [200, 429]


@pytest.mark.parametrize("name", ["native_rate", "free_rate", "pro_rate", "dialect_rate"])
@pytest.mark.parametrize("rate", ["", "60", "60/fortnight", "0/minute", "1/second; x", "-1/minute", "1.5/minute"])
def test_errors_of_rates_name_their_setting(name: str, rate: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name}: must be limits such as 60/minute or 60/minute; 10/second, got '{rate}'$"):
        RateLimits(ServerSettings(**{name: rate}))  # type: ignore[arg-type]


@given(st.lists(st.tuples(st.integers(1, 10**6), st.sampled_from(["second", "minute", "hour", "day"])), min_size=1, max_size=4))
def test_rates_are_sorted_by_their_window(items: list[tuple[int, str]]) -> None:
    found = parse("native_rate", "; ".join(f"{amount}/{unit}" for amount, unit in items))
    assert sorted((item.amount, item.GRANULARITY.name) for item in found) == sorted(items)
    assert [item.get_expiry() for item in found] == sorted(item.get_expiry() for item in found)


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_counts_for_itself(address: ipaddress.IPv4Address) -> None:
    assert identity(None, str(address)) == identity(None, f"::ffff:{address}") == f"address:{address}"


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_an_ipv6_user_counts_once(network: int, first: int, second: int) -> None:
    one, other = (ipaddress.IPv6Address(network << 64 | host) for host in (first, second))
    if one.ipv4_mapped or other.ipv4_mapped:
        return
    assert (
        identity(None, str(one)) == identity(None, str(other)) != identity(None, str(ipaddress.IPv6Address(int(one) ^ 1 << 64)))
    )


@given(st.text())
def test_any_address_can_be_counted(address: str) -> None:
    assert identity(None, address).startswith("address:")
    assert identity(FREE, address) == identity(FREE, "") != identity(PRO, address)


def test_tiers() -> None:
    counts = RateLimits(ServerSettings())
    for key, amount in ((None, 100), (FREE, 100), (PRO, 1000)):
        [item] = counts.rate("assistant", key) or ()
        assert item.amount == amount
        assert [item.amount for item in counts.rate("native", key) or ()] == [10, 60]
        assert counts.rate("dialect", key) is counts.rate("uncounted", key) is counts.rate("open", key) is None


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """Both clocks: `now` is the monotonic one, and that of the wall is `wall` ahead of it."""
    fake = types.SimpleNamespace(now=1000.0, wall=0.0)
    fake.monotonic = lambda: fake.now
    fake.time = lambda: fake.now + fake.wall
    monkeypatch.setattr(rate_limit, "time", fake)
    monkeypatch.setattr(memory, "time", fake)
    return fake


@hypothesis(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 6), st.lists(st.tuples(st.sampled_from("ab"), st.floats(0.001, 30), st.integers(-4, 4)), max_size=60))
def test_no_window_ever_holds_more_than_the_limit_whatever_the_clock_is_set_to(
    clock: types.SimpleNamespace, limit: int, requests: list[tuple[str, float, int]]
) -> None:
    async def scenario() -> None:
        counts, rate = RateLimits(ServerSettings()), parse("native_rate", f"{limit}/minute")
        answered: dict[str, list[float]] = {"a": [], "b": []}
        for who, later, hours in requests:
            clock.now += later
            clock.wall = hours * 3600.0
            assume(clock.now - 60 not in answered[who])  # exactly at the boundary the library may decide either way
            recent = [moment for moment in answered[who] if moment > clock.now - 60]
            try:
                headers = dict(await counts.count(rate, who))
            except RateLimited as refused:
                assert len(recent) == limit
                assert clock.now + refused.retry_after >= recent[0] + 60 > clock.now + refused.retry_after - 2
            else:
                assert len(recent) < limit
                assert int(headers[b"x-ratelimit-remaining"]) == limit - len(recent) - 1
                assert -0.01 < int(headers[b"x-ratelimit-reset"]) - ((*recent, clock.now)[0] + clock.wall + 60) < 1.01
                answered[who].append(clock.now)

    asyncio.run(scenario())


def test_clients_that_have_gone_leave_nothing_behind(clock: types.SimpleNamespace) -> None:
    async def scenario() -> None:
        counts, rate = RateLimits(ServerSettings()), parse("native_rate", "60/minute; 10/second")
        events = counts._memory.storage.events  # type: ignore[attr-defined]
        for number in range(100):
            await counts.count(rate, str(number))
        assert len(events) == 200
        clock.now += 30
        await counts.count(rate, "new")
        assert len(events) == 102
        clock.now += 61
        await counts.count(rate, "new")
        assert len(events) == 2

    asyncio.run(scenario())


def test_two_servers_share_one_count(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    with (
        redis(free_port()) as url,
        start_in(tmp_path / "a")(load=None, rate_limit=True, native_rate="4/hour", redis_url=url) as first,
        start_in(tmp_path / "b")(load=None, rate_limit=True, native_rate="4/hour", redis_url=url) as second,
    ):
        answers = [served.http.get("/models/current") for served in (first, second, first, second, first, second)]
    assert [answer.status_code for answer in answers] == [200] * 4 + [429] * 2
    assert [answer.headers["x-ratelimit-remaining"] for answer in answers] == ["3", "2", "1", "0", "0", "0"]
    assert {answer.headers["x-ratelimit-limit"] for answer in answers} == {"4"}
    assert all(3500 < int(answer.headers["retry-after"]) <= 3600 for answer in answers[4:])


def about_counts(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the warnings about rate limits; keys, which are shared too, have their own."""
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    return [text for text in said if "counts requests" in text or "rate limits" in text]


def test_without_redis_each_server_counts_alone_until_it_is_back(
    serve: Serve, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    url = f"redis://:secret@127.0.0.1:{port}/0"
    clock = types.SimpleNamespace(now=1000.0, time=time.time)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(redis_link, "time", clock)
    with serve(load=None, rate_limit=True, native_rate="2/hour", redis_url=url, api_key="key") as served:

        def remaining() -> str:
            return served.http.get("/models/current", headers={"x-api-key": "key"}).headers["x-ratelimit-remaining"]

        assert [remaining(), remaining(), remaining()] == ["1", "0", "0"]
        [text] = about_counts(caplog)
        assert "Redis fails" in text and "secret" not in caplog.text
        with redis(port, "--requirepass", "secret"):
            assert remaining() == "0"  # not tried again yet
            monkeypatch.setattr(redis_link, "PAUSE", 0.0)
            clock.now += 5.1
            assert [remaining(), remaining(), remaining()] == ["1", "0", "0"]
        assert remaining() == "0"  # down again: the local counts are kept
        assert remaining() == "0"
    back = "Redis is back: rate limits are shared again"
    assert [text.partition(" (")[0] for text in about_counts(caplog)] == ["Redis fails", back, "Redis fails"]


def test_a_restarted_redis_is_used_again(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(redis(port))
        with serve(load=None, rate_limit=True, native_rate="2/hour", redis_url=url) as served:
            assert served.http.get("/models/current").headers["x-ratelimit-remaining"] == "1"
            stack.close()
            with redis(port):
                assert served.http.get("/models/current").headers["x-ratelimit-remaining"] == "1"  # its counts are lost
    assert about_counts(caplog) == []


def test_a_redis_that_does_not_answer_holds_up_one_request(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        with serve(load=None, rate_limit=True, native_rate="9/hour", redis_url=url, api_key="key") as served:
            begun = time.monotonic()
            for left in range(8, 3, -1):
                answer = served.http.get("/models/current", headers={"x-api-key": "key"})
                assert answer.headers["x-ratelimit-remaining"] == str(left)
            assert time.monotonic() - begun < redis_link.PAUSE / 2
    assert len(about_counts(caplog)) == 1


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("localhost:6379", "got 'localhost:6379'"),
        ("http://:pass@localhost", r"got 'http://\*\*\*@localhost'"),
        ("redis://:pass@localhost:port/0", r"got 'redis://\*\*\*@localhost:port/0'"),
    ],
    ids=["no scheme", "wrong scheme", "wrong port"],
)
def test_wrong_addresses(url: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=f"^redis_url: .*{reason}") as failed:
        RateLimits(ServerSettings(redis_url=url))
    assert "pass" not in str(failed.value)


def test_the_error_of_a_missing_client_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "redis"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(ConfigError, match=r"^redis_url: needs Redis's client: pip install redis$"):
        RateLimits(ServerSettings(redis_url="redis://localhost"))


def test_redis_is_not_needed_where_nothing_is_counted() -> None:
    assert RateLimits(ServerSettings(rate_limit=False, redis_url="redis://localhost"))._redis is None
