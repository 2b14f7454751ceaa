"""The assistant with the real model, in a server of its own: over HTTP, with curl and over WebSocket."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests
from jsonschema import Draft202012Validator
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from locallab.server.dialects.assistant import request
from tests.support.served_process import Process, serving
from tests.support.wait import LONG_PATIENCE, until

ROOT = "/api/v1/assistant"
FACTORIAL = {"prompt": "def factorial(n):", "task": "generate", "max_tokens": 150}
BUGGY = "def add(a, b):\n    return a - b"


@pytest.fixture(scope="module")
def server(model_path: Path) -> Iterator[Process]:
    with serving(model_path, "--context", "4096", "--no-rate-limit") as process:
        yield process


def post(server: Process, task: str, /, **body: Any) -> dict[str, Any]:
    response = httpx.post(f"{server.url}{ROOT}/{task}", json={"temperature": 0, **body}, timeout=LONG_PATIENCE)
    assert response.status_code == 200, response.text
    return dict(response.json())


def connected(server: Process) -> ClientConnection:
    return connect(server.url.replace("http", "ws", 1) + f"{ROOT}/stream", open_timeout=LONG_PATIENCE)


def event(connection: ClientConnection) -> dict[str, Any]:
    return dict(json.loads(connection.recv(LONG_PATIENCE)))


def ended(connection: ClientConnection, count: int) -> dict[Any, tuple[str, dict[str, Any]]]:
    """Of each of `count` requests the text and the last event, by its id."""
    texts: dict[Any, str] = {}
    ends: dict[Any, dict[str, Any]] = {}
    while len(ends) < count:
        news = event(connection)
        if news["type"] == "token":
            texts[news["id"]] = texts.get(news["id"], "") + news["text"]
        else:
            ends[news["id"]] = news
    return {given: (texts.get(given, ""), last) for given, last in ends.items()}


def test_a_program_is_continued(server: Process) -> None:
    answer = post(server, "generate", prompt="def hello", task="generate", language="python", max_tokens=256)
    assert answer["response"].startswith("def hello") and "```" not in answer["response"]
    assert len(answer["response"]) > len("def hello(") and answer["code"] == answer["response"]
    assert answer["tokens_used"] == answer["usage"]["completion_tokens"] > 0 and answer["finish_reason"] == "stop"


def test_the_documents_python_example(server: Process) -> None:
    response = requests.post(f"{server.url}{ROOT}/generate", json=FACTORIAL, timeout=LONG_PATIENCE)
    assert response.json()["response"].startswith("def factorial(n):")


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_the_documents_curl_example(server: Process) -> None:
    command = ["curl", "-sS", "-X", "POST", f"{server.url}{ROOT}/generate", "-H", "Content-Type: application/json"]
    done = subprocess.run(
        [*command, "-d", json.dumps(FACTORIAL)], capture_output=True, text=True, check=True, timeout=LONG_PATIENCE
    )
    assert json.loads(done.stdout)["response"].startswith("def factorial(n):")


def test_a_description_is_answered_with_code(server: Process) -> None:
    answer = post(
        server, "generate", prompt="Write a Python function that adds two numbers.", language="python", max_tokens=200
    )
    assert answer["code"] and "def " in answer["code"] and "```" in answer["response"]


@pytest.mark.parametrize("task", ["refactor", "debug", "audit", "document", "chat"])
def test_every_other_task_answers(server: Process, task: str) -> None:
    answer = post(server, task, prompt=BUGGY, max_tokens=40)
    assert answer["response"].strip() and answer["task"] == task and 0 < answer["tokens_used"] <= 40


def test_history_is_read(server: Process) -> None:
    history = [{"role": "user", "content": "My name is Ada."}, {"role": "assistant", "content": "Hello Ada."}]
    alone, after = (post(server, "chat", prompt="Hi.", max_tokens=1, history=before) for before in ([], history))
    assert after["usage"]["prompt_tokens"] > alone["usage"]["prompt_tokens"] + 10


@pytest.mark.parametrize("task", ["debug", "audit"])
def test_json_is_valid(server: Process, task: str) -> None:
    answer = post(server, task, prompt=BUGGY, format="json")
    assert answer["finish_reason"] == "stop" and answer["result"] == json.loads(answer["response"])
    Draft202012Validator(request.debug_schema(len(BUGGY)) if task == "debug" else request.audit_schema(lines=2)).validate(
        answer["result"]
    )


def test_json_that_is_cut_says_so(server: Process) -> None:
    answer = post(server, "audit", prompt=BUGGY, format="json", max_tokens=5)
    assert (answer["finish_reason"], answer["result"]) == ("length", None) and "max_tokens" in answer["detail"]


def test_a_model_that_cannot_fill_in_says_so(server: Process) -> None:
    response = httpx.post(f"{server.url}{ROOT}/generate", json={"prompt": "def f(x):\n", "suffix": "\n"}, timeout=LONG_PATIENCE)
    assert response.status_code == 400 and response.json()["detail"].startswith("suffix: model ")


def test_a_stream_is_the_same_answer(server: Process) -> None:
    body = {"prompt": BUGGY, "max_tokens": 30}
    whole = post(server, "refactor", **body)
    with httpx.stream(
        "POST", f"{server.url}{ROOT}/refactor", json={**body, "temperature": 0, "stream": True}, timeout=LONG_PATIENCE
    ) as response:
        events = [json.loads(line.removeprefix("data: ")) for line in response.iter_lines() if line.startswith("data: ")]
    assert "".join(each["text"] for each in events[:-1]) == whole["response"]
    assert (events[-1]["type"], events[-1]["tokens_used"]) == ("done", whole["tokens_used"])


def test_several_requests_over_one_socket(server: Process) -> None:
    with connected(server) as connection:
        for number in range(6):
            ask = {"id": number, "task": "chat", "prompt": f"Say the number {number}.", "max_tokens": 12, "temperature": 0}
            connection.send(json.dumps(ask))
        connection.send("not JSON")
        error = event(connection)
        while error["type"] != "error":
            error = event(connection)
        assert set(error) == {"type", "detail"}
        answers = ended(connection, 6)
    assert set(answers) == set(range(6))
    assert all(last["type"] == "done" and 0 < last["tokens_used"] <= 12 for _, last in answers.values())


def test_a_request_is_cancelled_and_its_room_is_free(server: Process) -> None:
    with connected(server) as connection:
        story = {"id": "story", "task": "chat", "prompt": "Tell me a long story.", "ignore_eos": True}
        connection.send(json.dumps(story))
        assert event(connection)["type"] == "token"
        connection.send(json.dumps({"type": "cancel", "id": "story"}))
        _, last = ended(connection, 1)["story"]
        assert last["finish_reason"] == "cancelled" and last["tokens_used"] > 0
        until(lambda: server.stats()["running"] == 0)


def test_a_socket_that_is_left_frees_its_room(server: Process) -> None:
    with connected(server) as connection:
        for number in range(3):
            connection.send(json.dumps({"id": number, "task": "chat", "prompt": "Tell me a long story.", "ignore_eos": True}))
        event(connection)
    until(lambda: server.stats()["running"] == 0)


def test_sigterm_lets_a_request_end_and_then_closes_the_socket(model_path: Path) -> None:
    with serving(model_path, "--grace", "60", "--no-rate-limit") as server, connected(server) as connection:
        body = {"id": 1, "task": "chat", "prompt": "Tell me a story.", "max_tokens": 40, "ignore_eos": True}
        connection.send(json.dumps(body))
        event(connection)
        server.process.send_signal(signal.SIGTERM)
        _, last = ended(connection, 1)[1]
        assert (last["finish_reason"], last["tokens_used"]) == ("length", 40)
        with pytest.raises(ConnectionClosed):
            connection.recv(LONG_PATIENCE)
        assert connection.close_code == 1012
        assert server.process.wait(LONG_PATIENCE) == 0
