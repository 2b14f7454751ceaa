"""Real clusters on this machine: Ray, its processes, and the embedded model in each replica."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from websockets.sync.client import connect

from tests.support.dialect_requests import ROUTES
from tests.support.ray_cluster import UP, clustered
from tests.support.redis_server import redis
from tests.support.replicas import VARIES
from tests.support.served_process import Process
from tests.support.wait import free_port, until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(800)]

COUNTS = re.compile(r'"(?:cached_tokens|cache_\w+|prompt_n|prompt_eval_count|tokens_\w+|\w+_per_token_ms)": ?[\d.]+')
"""What depends on what was asked before."""

LONG = "Tell me about the sea and the wind. " * 12
ENDLESS = {"stream": True, "max_tokens": 40, "ignore_eos": True, "temperature": 0}


def config(model: Path, replicas: Any = 2, **more: Any) -> dict[str, Any]:
    return {"models": [{"model": str(model), "replicas": replicas, "settings": {"threads": 1, "context": 2048}}], **more}


def greedy(path: str) -> dict[str, Any]:
    """Return a request whose few tokens are certain: later ones may be as likely as others, whatever was computed before."""
    if path in ("/api/chat", "/api/generate"):
        return {**ROUTES[path], "options": {"temperature": 0, "num_predict": 5}}
    most = {"/v1/responses": "max_output_tokens", "/completion": "n_predict", "/infill": "n_predict"}.get(path, "max_tokens")
    return {**ROUTES[path], "temperature": 0, most: 5}


def plain(response: httpx.Response) -> tuple[int, str]:
    text = re.sub(r',?"(?:timings|completion_tokens_details)":\{[^}]*\}', "", response.text)
    return response.status_code, COUNTS.sub("*", VARIES.sub("*", text))


def said(stream: str) -> str:
    """Return the text of a stream's events."""
    lines = (line.removeprefix("data: ") for line in stream.splitlines() if line.startswith(("data: {", "{")))
    return "".join(text for line in lines for text in _texts(json.loads(line)))


def _texts(event: Any) -> Iterator[str]:
    if isinstance(event, dict):
        for name, value in event.items():
            if isinstance(value, str) and name in ("text", "content", "response", "delta", "message", "detail"):
                yield value
            yield from _texts(value)
    elif isinstance(event, list):
        for each in event:
            yield from _texts(each)


class Load:
    """Clients that stream answers until `stop`; `ends` has the status and the last event of each answer, or the error."""

    def __init__(self, url: str, clients: int, prompt: Callable[[int], str] = lambda at: f"{at} {LONG}") -> None:
        self.ends: list[tuple[int, str]] = []
        self._stopping = threading.Event()
        self._url = url
        self._prompt = prompt
        self._threads = [threading.Thread(target=self._work, args=(at,)) for at in range(clients)]
        for each in self._threads:
            each.start()

    def stop(self) -> list[tuple[int, str]]:
        self._stopping.set()
        for each in self._threads:
            each.join(UP)
        return self.ends

    def _work(self, at: int) -> None:
        with httpx.Client(timeout=UP) as http:
            while not self._stopping.is_set():
                body = {"messages": [{"role": "user", "content": self._prompt(at)}], **ENDLESS}
                try:
                    with http.stream("POST", f"{self._url}/v1/chat/completions", json=body) as response:
                        self.ends.append((response.status_code, [line for line in response.iter_lines() if line][-1]))
                except httpx.HTTPError as error:
                    self.ends.append((0, repr(error)))


def ask(url: str, **more: Any) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, **more}
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=UP)


def test_every_dialect_is_answered_as_by_the_plain_server(tmp_path: Path, model_path: Path, live: Process) -> None:
    with clustered(tmp_path, config(model_path)) as cluster:
        assert len(cluster.has(2)) == 2
        for path in ROUTES:
            for streams in (False, True):
                body = {**greedy(path), "stream": streams}
                here, there = (httpx.post(f"{url}{path}", json=body, timeout=UP) for url in (cluster.url, live.url))
                if streams:  # texts that are ready together are one event
                    assert said(here.text) == said(there.text) and here.status_code == there.status_code, path
                else:
                    assert plain(here) == plain(there), path
        with connect(f"ws{cluster.url.removeprefix('http')}/api/v1/assistant/stream") as ws:
            ws.send(json.dumps({"prompt": "hello", "task": "chat", "max_tokens": 3}))
            until(lambda: json.loads(ws.recv())["type"] == "done")
        shown = subprocess.run(
            [sys.executable, "-m", "locallab", "cluster", "status", "--url", cluster.url, "--json"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert {each["id"] for each in json.loads(shown.stdout)} == {each["id"] for each in cluster.replicas()}


def test_a_replica_that_is_killed_loses_no_request_that_has_no_answer_yet(tmp_path: Path, model_path: Path) -> None:
    with clustered(tmp_path, config(model_path)) as cluster:
        before = cluster.has(2)
        load = Load(cluster.url, 8)
        until(lambda: len(load.ends) >= 2, UP)
        os.kill(before[0]["pid"], signal.SIGKILL)
        until(lambda: before[0]["pid"] not in [each["pid"] for each in cluster.replicas()], UP)
        after = cluster.has(2)
        ends = load.stop()
        assert {status for status, _ in ends} == {200}
        others = [last for _, last in ends if last != "data: [DONE]"]
        assert all("the replica that had the request is gone" in last for last in others) and len(others) <= 8
        assert {each["pid"] for each in after} != {each["pid"] for each in before}


def test_a_new_configuration_takes_over_without_a_refused_request(tmp_path: Path, model_path: Path) -> None:
    with clustered(tmp_path, config(model_path)) as cluster:
        before = {each["pid"] for each in cluster.has(2)}
        load = Load(cluster.url, 3)
        until(lambda: len(load.ends) >= 1, UP)
        changed = config(model_path)
        changed["models"][0]["settings"]["context"] = 1024
        cluster.change(changed)
        ends = load.stop()
        assert set(ends) == {(200, "data: [DONE]")}
        after = {each["pid"] for each in cluster.has(2)}
        assert not before & after
        assert httpx.get(f"{cluster.url}/v1/models").json()["data"][0]["context_length"] == 1024
        cluster.change({"models": [{"model": str(model_path), "replica": 3}]})
        assert "unknown field `replica`" in "".join(cluster.log)
        assert {each["pid"] for each in cluster.replicas()} == after


def test_replicas_come_with_work_and_go_without(tmp_path: Path, model_path: Path) -> None:
    scaling = {"min": 0, "max": 2, "queued_tokens": 200, "idle_seconds": 4, "start_seconds": 1}
    with clustered(tmp_path, config(model_path, scaling)) as cluster:
        assert cluster.replicas() == []
        assert ask(cluster.url).status_code == 200
        assert len(cluster.replicas()) == 1
        load = Load(cluster.url, 6)
        cluster.has(2)
        assert {status for status, _ in load.stop()} == {200}
        cluster.has(0)
        assert ask(cluster.url).status_code == 200


def test_redis_stops_and_comes_back(tmp_path: Path, model_path: Path) -> None:
    port = free_port()

    def respond() -> str:
        body = {"input": "hi", "max_output_tokens": 4}
        answer = httpx.post(f"{cluster.url}/v1/responses", json=body, timeout=UP)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    def found(id: str) -> set[int]:
        """Return what replicas say of a response: whichever is asked."""
        return {httpx.get(f"{cluster.url}/v1/responses/{id}", timeout=UP).status_code for _ in range(8)}

    with contextlib.ExitStack() as first:
        url = first.enter_context(redis(port))
        with clustered(tmp_path, config(model_path, server={"redis_url": url})) as cluster:
            cluster.has(2)
            assert found(respond()) == {200}
            first.close()
            respond()
            assert any("Redis" in line for line in cluster.log)
            with redis(port):
                until(lambda: found(respond()) == {200}, UP)


@contextlib.contextmanager
def node(*arguments: str, cpus: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run a node of Ray in the foreground."""
    command = ["ray", "start", "--block", f"--num-cpus={cpus}", "--num-gpus=0", "--disable-usage-stats", *arguments]
    ray = Path(sys.executable).with_name(command[0])
    process = subprocess.Popen(
        [ray, *command[1:]], start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture
def ray_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the nodes of a test have their sockets, whose paths must be short."""
    folder = Path(tempfile.mkdtemp(prefix="ll", dir="/tmp"))
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(16))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def test_a_node_that_dies_is_found_out(tmp_path: Path, model_path: Path, ray_folder: Path) -> None:
    port = free_port()
    own = ["--temp-dir", str(ray_folder)]
    with node("--head", f"--port={port}", "--include-dashboard=false", *own, cpus=1):
        until(lambda: _answers(port), UP)
        with node(f"--address=127.0.0.1:{port}", cpus=1) as second:
            address = f"127.0.0.1:{port}"
            until(lambda: _nodes(address) == 2, UP)
            with clustered(tmp_path, config(model_path, ray=address)) as cluster:
                cluster.has(2)
                load = Load(cluster.url, 4)
                until(lambda: len(load.ends) >= 2, UP)
                os.killpg(second.pid, signal.SIGKILL)
                cluster.has(1)
                done = len(load.ends)
                until(lambda: len(load.ends) > done + 4, UP)
                assert {status for status, _ in load.stop()} == {200}


def _answers(port: int) -> bool:
    time.sleep(0.2)
    command = [Path(sys.executable).with_name("ray"), "health-check", "--address", f"127.0.0.1:{port}"]
    return subprocess.run(command, capture_output=True).returncode == 0


def _nodes(address: str) -> int:
    time.sleep(0.2)
    program = f"import ray; ray.init('{address}', logging_level=50); print(sum(each['Alive'] for each in ray.nodes()))"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    return int(found.stdout) if found.returncode == 0 else 0


def test_serve_run_has_the_whole_server(tmp_path: Path, model_path: Path, ray_folder: Path) -> None:
    port = free_port()
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump(config(model_path, 1, server={"api_key": "a-key-of-some-length"})))
    gcs = free_port()
    with node("--head", f"--port={gcs}", "--include-dashboard=false", "--temp-dir", str(ray_folder), cpus=2):
        until(lambda: _answers(gcs), UP)
        program = Path(__file__).parents[1] / "support" / "serve_run.py"
        command = [sys.executable, program, f"127.0.0.1:{gcs}", str(port), str(path)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            assert process.stdout is not None
            log: list[str] = []
            while not any("running" in line for line in log) and (line := process.stdout.readline()):
                log.append(line)
            url = f"http://127.0.0.1:{port}"
            assert ask(url).status_code == 401, "".join(log)
            with httpx.Client(base_url=url, headers={"authorization": "Bearer a-key-of-some-length"}, timeout=UP) as http:
                body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "stream": True}
                with http.stream("POST", "/v1/chat/completions", json=body) as response:
                    assert [line for line in response.iter_lines() if line][-1] == "data: [DONE]"
                assert len(http.get("/system/info").json()["replicas"]) == 1
                assert "<html" in http.get("/", headers={"accept": "text/html"}).text
        finally:
            process.kill()
            process.wait()
            process.stdout.close()  # type: ignore[union-attr]
