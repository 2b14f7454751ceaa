"""A front passes requests on to replicas, and their answers back as they are, whatever becomes of the replicas."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import connect

from locallab.cluster import wire
from locallab.keys import KeyStore
from tests.support.dialect_requests import ROUTES
from tests.support.fake_engine import FIM, say
from tests.support.http_server import Served
from tests.support.replicas import VARIES, Cluster, cluster_in
from tests.support.wait import until

SOCKET = "/api/v1/assistant/stream"


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster_in(tmp_path_factory.mktemp("two")) as cluster:
        yield cluster


@pytest.fixture
def cluster(two: Cluster) -> Cluster:
    """A front with two replicas, for tests that leave them as they are."""
    for each in two.replicas:
        each.engine.reset()
    return two


def plain(response: httpx.Response) -> tuple[int, str, str]:
    return response.status_code, response.headers["content-type"], VARIES.sub("*", response.text)


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("path", ROUTES)
def test_answers_of_every_dialect_are_those_of_the_plain_server(
    cluster: Cluster, served: Served, path: str, streams: bool
) -> None:
    body = {**ROUTES[path], "stream": streams}
    assert plain(cluster.http.post(path, json=body)) == plain(served.http.post(path, json=body))


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/", None),
        ("GET", "/v1/models", None),
        ("GET", "/v1/models/tiny:1b", None),
        ("GET", "/v1/models/none", None),
        ("GET", "/api/tags", None),
        ("POST", "/api/show", {"model": "tiny:1b"}),
        ("GET", "/props", None),
        ("POST", "/tokenize", {"content": "hello"}),
        ("POST", "/v1/chat/completions", {"messages": "wrong"}),
        ("POST", "/v1/messages", {"max_tokens": 1}),
        ("POST", "/api/chat", [1]),
        ("GET", "/health", None),
        ("GET", "/nowhere", None),
        ("DELETE", "/v1/chat/completions", None),
    ],
)
def test_other_routes_and_errors_are_those_of_the_plain_server(
    cluster: Cluster, served: Served, method: str, path: str, body: Any
) -> None:
    def ask(http: httpx.Client) -> httpx.Response:
        return http.request(method, path, json=body) if body is not None else http.request(method, path)

    answer = ask(cluster.http)
    assert plain(answer)[:2] == plain(ask(served.http))[:2]
    if answer.status_code != 200:
        assert answer.text == ask(served.http).text


def test_a_body_that_is_no_json_is_refused_as_by_the_plain_server(cluster: Cluster, served: Served) -> None:
    wrong = {"content": b"{nonsense", "headers": {"content-type": "application/json"}}
    assert cluster.http.post("/v1/completions", **wrong).text == served.http.post("/v1/completions", **wrong).text  # type: ignore[arg-type]


def test_a_conversation_stays_where_its_prefix_is(tmp_path: Path) -> None:
    with cluster_in(tmp_path, 4, engine={"context": 8192}) as cluster:
        stay_together(cluster)


def stay_together(cluster: Cluster) -> None:
    messages = [{"role": "user", "content": "a question of some length, " * 40}]
    cluster.http.post("/v1/chat/completions", json={"messages": messages})
    [first] = [each for each in cluster.replicas if each.engine.submitted]
    for _ in range(5):
        messages += [{"role": "assistant", "content": "so"}, {"role": "user", "content": "and then?"}]
        cluster.http.post("/v1/chat/completions", json={"messages": messages})
    assert len(first.engine.submitted) == 6
    until(lambda: len(first.server.publish().held) >= 5)


def test_a_prefix_that_was_evicted_is_published_no_more(tmp_path: Path) -> None:
    with cluster_in(tmp_path, 1) as cluster:
        [replica] = cluster.replicas
        cluster.http.post("/v1/completions", json={"prompt": "a question of some length, " * 10})
        until(lambda: len(replica.server.publish().held) == 2)
        replica.engine.evicted = 100
        until(lambda: len(replica.server.publish().held) == 1)
        replica.engine.evicted = 10_000
        until(lambda: not replica.server.publish().held)


def test_usage_is_counted_by_the_front(tmp_path: Path) -> None:
    secret = KeyStore(tmp_path / "keys.json").create("me", "free", "admin")[1]
    with cluster_in(tmp_path) as cluster:
        key = {"x-api-key": secret}
        assert cluster.http.post("/v1/completions", json={"prompt": "hi"}).status_code == 401
        assert cluster.http.post("/v1/completions", json={"prompt": "hi", "stream": True}, headers=key).status_code == 200
        with connect(f"ws{cluster.url.removeprefix('http')}{SOCKET}", additional_headers=key) as ws:
            ws.send(json.dumps({"prompt": "hi", "task": "chat"}))
            while json.loads(ws.recv())["type"] != "done":
                pass
        [row] = cluster.http.get("/api/v1/usage", headers=key).json()["usage"]
        assert row["name"] == "me" and row["requests"] == 2 and row["completion_tokens"] > 40


def test_messages_of_a_socket_count_for_the_rate_limit_of_the_front(tmp_path: Path) -> None:
    with (
        cluster_in(tmp_path, rate_limit=True, free_rate="2/minute") as cluster,
        connect(f"ws{cluster.url.removeprefix('http')}{SOCKET}") as ws,
    ):
        seen = []
        for _ in range(3):
            ws.send(json.dumps({"prompt": "hi", "task": "chat"}))
            while (event := json.loads(ws.recv()))["type"] == "token":
                pass
            seen.append(event)
        assert [each["type"] for each in seen] == ["done", "done", "error"]
        assert "rate limit exceeded" in seen[2]["detail"]


def test_a_request_that_has_no_answer_yet_is_sent_to_another_replica(tmp_path: Path) -> None:
    with cluster_in(tmp_path) as cluster:
        cluster.script(threading.Event())
        answers: list[httpx.Response] = []
        thread = threading.Thread(target=lambda: answers.append(cluster.http.post("/v1/completions", json={"prompt": "hi"})))
        thread.start()
        until(lambda: any(each.engine._running for each in cluster.replicas))
        first = cluster.busy()
        for each in cluster.replicas:
            each.engine.reset()
        first.kill()
        thread.join(30)
        assert answers[0].status_code == 200 and answers[0].json()["choices"][0]["text"].startswith("Hello")


@pytest.mark.parametrize("path", ROUTES)
def test_a_stream_that_has_begun_ends_with_the_error_of_its_dialect(tmp_path: Path, path: str) -> None:
    with cluster_in(tmp_path, engine={"fim": FIM}) as cluster:
        cluster.script(*say("so it begins"), threading.Event())
        with cluster.http.stream("POST", path, json={**ROUTES[path], "stream": True}) as response:
            parts = response.iter_text()
            text = next(parts)
            cluster.busy().kill()
            text += "".join(parts)
        assert response.status_code == 200
        assert "the replica that had the request is gone" in text.strip().splitlines()[-1]
        if response.headers["content-type"].startswith("text/event-stream"):
            last = json.loads(text.strip().splitlines()[-1].removeprefix("data: "))
            assert last.get("type") in {"/v1/messages": ("error",), "/v1/responses": ("error",)}.get(path, (None, "error"))


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/api/chat"])
def test_a_stream_ends_with_an_error_when_the_front_stops(tmp_path: Path, path: str) -> None:
    with cluster_in(tmp_path, stops=True) as cluster:
        cluster.script(*say("so it begins"), threading.Event())
        with httpx.stream("POST", f"{cluster.url}{path}", json={**ROUTES[path], "stream": True}, timeout=30) as response:
            parts = response.iter_text()
            text = next(parts)
            threading.Thread(target=cluster.stop).start()
            text += "".join(parts)
        assert "the server is stopping" in text.strip().splitlines()[-1]


def test_a_request_for_which_no_replica_is_left_is_refused(tmp_path: Path) -> None:
    with cluster_in(tmp_path) as cluster:
        cluster.http.get("/v1/models")
        for each in cluster.replicas:
            each.kill()
        for path in ("/v1/completions", "/api/generate"):
            answer = cluster.http.post(path, json={"model": "tiny:1b", "prompt": "hi"})
            assert answer.status_code == 503 and answer.headers["retry-after"]
            assert "the replica that had the request is gone" in answer.text


def test_a_socket_hears_that_its_replica_is_gone(tmp_path: Path) -> None:
    with cluster_in(tmp_path) as cluster, connect(f"ws{cluster.url.removeprefix('http')}{SOCKET}") as ws:
        cluster.script(*say("so it begins"), threading.Event())
        ws.send(json.dumps({"prompt": "hi", "task": "chat"}))
        assert json.loads(ws.recv())["type"] == "token"
        cluster.busy().kill()
        seen = []
        with pytest.raises(ConnectionClosedError):
            while True:
                seen.append(json.loads(ws.recv()))
        assert seen[-1]["type"] == "error" and "gone" in seen[-1]["detail"]
        assert ws.close_code == 1011


def test_a_client_that_leaves_ends_its_request(cluster: Cluster) -> None:
    for begun in (True, False):
        cluster.script(*(say("so it begins") if begun else ()), threading.Event())
        with _waiting(cluster):
            until(lambda: any(each.engine._running for each in cluster.replicas))
        until(lambda: not any(each.engine._running for each in cluster.replicas))


class _waiting:
    """A client that gives up before an answer."""

    def __init__(self, cluster: Cluster) -> None:
        host, port = cluster.url.removeprefix("http://").split(":")
        self._socket = socket.create_connection((host, int(port)))
        body = b'{"prompt": "hi", "stream": true}'
        head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        self._socket.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        self._socket.close()


def test_models_are_those_of_the_configuration(cluster: Cluster) -> None:
    for path, body in (("/models/load", {"model_id": "tiny:1b"}), ("/api/pull", {"model": "tiny:1b"}), ("/models/unload", {})):
        answer = cluster.http.post(path, json=body)
        assert answer.status_code == 409 and "this is a cluster" in answer.text


def test_each_model_is_answered_and_listed_by_its_own_replicas(tmp_path: Path) -> None:
    with cluster_in(tmp_path, 1, others=("other:2b",)) as cluster:
        for name in ("tiny:1b", "other:2b", "first", "anything"):
            answer = cluster.http.post("/v1/completions", json={"model": name, "prompt": "hi"})
            assert answer.status_code == 200, answer.text
        assert [len(each.engine.submitted) for each in cluster.replicas] == [3, 1]
        ready = [(each["id"], each["status"]) for each in cluster.http.get("/v1/models").json()["data"]]
        assert sorted(ready) == [("other:2b", "ready"), ("tiny:1b", "ready")]
        assert cluster.http.get("/v1/models/other:2b").json()["status"] == "ready"
        assert {each["name"] for each in cluster.http.get("/api/tags").json()["models"]} >= {"tiny:1b", "other:2b"}
        assert [each["name"] for each in cluster.http.get("/api/ps").json()["models"]] == ["tiny:1b", "other:2b"]
        available = {each["name"]: each["status"] for each in cluster.http.get("/models/available").json()["models"]}
        assert available["tiny:1b"] == available["other:2b"] == "ready" and available["broken:3b"] == "unloaded"
        assert cluster.http.post("/api/show", json={"model": "other:2b"}).status_code == 200


def test_figures_of_all_replicas_are_shown(cluster: Cluster) -> None:
    for at in range(8):
        cluster.http.post("/v1/completions", json={"prompt": f"{at} " * 200})
    info = cluster.http.get("/system/info").json()
    assert [each["id"] for each in info["replicas"]] == ["r0", "r1"]
    assert sum(each["prompt_tokens"] for each in info["replicas"]) >= 8 * 400
    metrics = cluster.http.get("/metrics").text
    assert "locallab_cluster_replicas 2.0" in metrics and 'locallab_replica_prefixes{model="tiny:1b",replica="r1"}' in metrics
    assert metrics.count("# TYPE locallab_time_to_first_token_seconds histogram") == 1
    counts = re.findall(r'locallab_time_to_first_token_seconds_count\{model="tiny:1b",replica="(r\d)"\} (\S+)', metrics)
    assert [name for name, _ in counts] == ["r0", "r1"]
    assert 'locallab_http_requests_total{route="/v1/completions",status="200"}' in metrics


def test_the_page_is_the_fronts_own(cluster: Cluster) -> None:
    before = [each.visits for each in cluster.replicas]
    assert "<html" in cluster.http.get("/", headers={"accept": "text/html"}).text
    assert cluster.http.get("/page/app.js").headers["content-type"].startswith("text/javascript")
    assert cluster.http.get("/api/v1/me").json()["role"] == "admin"
    assert cluster.http.get("/openapi.json").json()["paths"]["/v1/chat/completions"]
    assert [each.visits for each in cluster.replicas] == before


def test_activity_of_all_replicas_is_shown(cluster: Cluster) -> None:
    cluster.script(threading.Event())
    with _waiting(cluster), cluster.http.stream("GET", "/api/v1/events") as watched:
        for line in watched.iter_lines():
            if line.startswith("data: ") and (shown := json.loads(line.removeprefix("data: ")))["requests"]:
                break
    [request] = shown["requests"]
    assert request["replica"] in ("r0", "r1") and shown["running"] == 1
    assert {each["replica"] for each in shown["models"]} == {"r0", "r1"} == {each["id"] for each in shown["replicas"]}


@pytest.mark.parametrize("sent", [b"", b"x" * 16, b"x" * wire.TICKET, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", b"\0" * 64])
def test_a_replica_answers_nobody_without_a_ticket(cluster: Cluster, sent: bytes) -> None:
    cluster.http.get("/v1/models")
    with socket.create_connection(("127.0.0.1", cluster.replicas[0].server._port), timeout=10) as other:
        other.sendall(sent)
        other.shutdown(socket.SHUT_WR)
        assert other.recv(100) == b""


def test_a_frame_that_is_too_long_ends_the_connection() -> None:
    import asyncio

    async def read() -> Any:
        async def send(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write((wire.LONGEST + 1).to_bytes(4, "big") + b"x")
            await reader.read()
            writer.close()

        async with await asyncio.start_server(send, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            frames = await wire.connect("127.0.0.1", port, b"")
            try:
                return await frames.read()
            finally:
                await frames.close()

    assert asyncio.run(read()) is None
