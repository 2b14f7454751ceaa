"""Two fronts, each with two replicas, that share keys, limits, usage and stored responses through a real Redis."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from locallab import redis_link
from locallab.keys import SharedKeyStore, shared
from locallab.server import usage
from locallab.server.shared_usage import RedisUsage
from tests.support.redis_server import redis
from tests.support.replicas import Cluster, cluster_in
from tests.support.wait import free_port, until


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_link, "PAUSE", 0.05)
    monkeypatch.setattr(shared, "REFRESH", 0.02)
    monkeypatch.setattr(usage, "INTERVAL", 0.01)


@contextlib.contextmanager
def two_clusters(folder: Path, url: str, **settings: Any) -> Iterator[tuple[Cluster, Cluster]]:
    for name in "ab":
        (folder / name).mkdir()
    with (
        cluster_in(folder / "a", redis_url=url, **settings) as first,
        cluster_in(folder / "b", redis_url=url, **settings) as second,
    ):
        yield first, second


def create(cluster: Cluster, key: str, text: str = "hi", **fields: Any) -> str:
    """Return the id of a new response."""
    answer = cluster.http.post("/v1/responses", json={"model": "any", "input": text, **fields}, headers={"x-api-key": key})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def statuses(cluster: Cluster, response_id: str, key: str) -> set[int]:
    """Ask often enough for every replica to be asked."""
    headers = {"x-api-key": key}
    return {cluster.http.get(f"/v1/responses/{response_id}", headers=headers).status_code for _ in range(16)}


def counted(url: str) -> int:
    with redis_link.connect(url) as connection:
        return sum(spent.requests for spent in RedisUsage(connection).read("").values())


def test_fronts_and_replicas_share_everything(tmp_path: Path) -> None:
    with redis(free_port()) as url, redis_link.connect(url) as connection, two_clusters(tmp_path, url) as (first, second):
        keys = SharedKeyStore(connection)
        (_, mine), (_, yours) = keys.create("mine", "free", "admin"), keys.create("yours", "free")
        until(lambda: all(each.http.get("/v1/models").status_code == 401 for each in (first, second)))
        made = [create(cluster, mine, f"number {number}") for cluster in (first, second) for number in range(3)]
        for cluster in (first, second):
            assert all(statuses(cluster, each, mine) == {200} and statuses(cluster, each, yours) == {404} for each in made)
            assert all(replica.visits for replica in cluster.replicas)
        create(second, mine, previous_response_id=made[0])
        until(lambda: counted(url) == 7)
        for cluster in (first, second):
            rows = cluster.http.get("/api/v1/usage", headers={"x-api-key": mine}).json()["usage"]
            assert [(row["name"], row["requests"]) for row in rows] == [("mine", 7)]
        keys.revoke("mine")
        for cluster in (first, second):
            until(lambda: cluster.http.get("/v1/models", headers={"x-api-key": mine}).status_code in (401, 429))  # noqa: B023


def test_fronts_share_rate_limits(tmp_path: Path) -> None:
    limits: dict[str, Any] = {"rate_limit": True, "dialect_rate": "3/hour"}
    with redis(free_port()) as url, two_clusters(tmp_path, url, **limits) as (first, second):
        answers = [cluster.http.get("/v1/models").status_code for cluster in (first, second) * 2]
    assert answers == [200, 200, 200, 429]


def test_without_redis_a_cluster_goes_on_and_nothing_counted_is_lost(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    with contextlib.ExitStack() as running:
        url = running.enter_context(redis(port))
        with redis_link.connect(url) as connection:
            _, key = SharedKeyStore(connection).create("mine", "free")
        with cluster_in(tmp_path, redis_url=url) as cluster:
            create(cluster, key)
            until(lambda: counted(url) == 1)
            running.close()
            kept = [create(cluster, key, f"number {number}") for number in range(3)]
            with redis(port):
                until(lambda: "responses are shared again" in caplog.text and counted(url) == 3)
                until(lambda: all(statuses(cluster, each, key) == {200} for each in kept))
                said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert sum("usage is kept in" in each for each in said) == 1
    assert 1 <= sum("its own responses only" in each for each in said) <= len(cluster.replicas)
