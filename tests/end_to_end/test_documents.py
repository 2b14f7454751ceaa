"""The two documents of the API, example by example, as written, on a server with the real model."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.sync.client import connect

from tests.support.document_examples import ALL, ASSISTANT, DOCUMENTS, LOCALLAB, Example, differences, filled, routes
from tests.support.openapi_check import Described
from tests.support.served_process import Process, serving
from tests.support.wait import LONG_PATIENCE

OTHER_NAME = {"service": "locallab"}
"""The one value that is ours and not the document's: the service has a name of its own."""

REGISTRY = """\
models:
- {id: "broken:1b", source: {kind: file, path: "broken.gguf"}, size: 1 MB, context: 512, description: no model at all}
"""


@pytest.fixture(scope="module")
def server(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """With its limits on: the documents are about those too."""
    folder = tmp_path_factory.mktemp("documents")
    (folder / "broken.gguf").write_bytes(b"GGUF is not all that a model needs")
    registry = folder / "models.yaml"
    registry.write_text(REGISTRY.replace("broken.gguf", str(folder / "broken.gguf")))
    with serving(model_path, "--context", "640", "--registry", str(registry)) as process:
        yield process


@pytest.fixture(scope="module")
def http(server: Process) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=LONG_PATIENCE) as client:
        yield client


@pytest.fixture(scope="module")
def model(http: httpx.Client) -> str:
    name: str = http.get("/models/current").json()["name"]
    return name


@pytest.fixture(scope="module")
def described(http: httpx.Client) -> Described:
    return Described(http.get("/openapi.json").json())


def named(found: list[Example]) -> Any:
    return pytest.mark.parametrize("example", found, ids=map(str, found))


JSON = [example for example in ALL if example.language == "json" and example.route]
REQUESTS = [example for example in JSON if not example.is_answer]
ANSWERS = {(example.document, example.route): example.json for example in JSON if example.is_answer}
ANSWERS |= {  # "Response: Same as generate", and so for the routes that say nothing
    (ASSISTANT, ("POST", f"/api/v1/assistant/{task}")): ANSWERS[ASSISTANT, ("POST", "/api/v1/assistant/generate")]
    for task in ("refactor", "debug", "audit", "chat")
}
CODE = {language: [e for e in ALL if e.language == language] for language in ("python", "typescript", "bash")}


def body(example: Example, model: str, **fields: Any) -> Any:
    return filled(example.json, **{"role": "user", "model_id": model, **fields})


def as_written(example: Example, server: Process) -> str:
    """The code with nothing changed but where the server is."""
    text, count = re.subn(r"https://your-ngrok-url\.ngrok-io|http://localhost:8000", server.url, example.text)
    assert count == 1
    return text


def run(*command: str | Path) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=LONG_PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_examples_are_found() -> None:
    assert {language: len(found) for language, found in CODE.items()} == {"python": 2, "typescript": 1, "bash": 1}
    assert len(REQUESTS) == 8 and len(ANSWERS) == 11 and len(ALL) == 27
    assert {len(routes(document)) for document in DOCUMENTS} == {7, 11}


@named(REQUESTS)
def test_requests_are_answered_as_documented(http: httpx.Client, model: str, example: Example) -> None:
    assert example.route
    response = http.post(example.route[1], json=body(example, model))
    assert response.status_code == 200, response.text
    documented = ANSWERS.get((example.document, example.route))
    if documented is not None:
        assert list(differences(filled(documented), response.json())) == []
    if "task" in example.json:
        assert response.json()["task"] == example.json["task"]


@pytest.mark.parametrize("fields", [{"stream": True}, {"max_length": None}, {"model_id": None}], ids=str)
@named([example for example in REQUESTS if example.document == LOCALLAB and "stream" in example.json])
def test_every_documented_type_is_taken(http: httpx.Client, model: str, example: Example, fields: dict[str, Any]) -> None:
    assert example.route
    sent = {**body(example, model), "max_tokens": 16, **fields}
    response = http.post(example.route[1], json=sent)
    assert response.status_code == 200, response.text
    streamed = response.headers["content-type"].startswith("text/event-stream")
    assert streamed == bool(sent["stream"])


@pytest.mark.parametrize("path", sorted({path for d in DOCUMENTS for verb, path in routes(d) if verb == "GET"}))
def test_what_can_be_got_is_as_documented(http: httpx.Client, path: str) -> None:
    response = http.get(path)
    assert response.status_code == 200 and isinstance(response.json(), dict)
    for (_, route), documented in ANSWERS.items():
        if route == ("GET", path):
            assert list(differences(documented, response.json())) == []


def test_health_and_templates_say_what_the_document_says(http: httpx.Client) -> None:
    [health] = [answer for (_, route), answer in ANSWERS.items() if route == ("GET", "/health")]
    assert (health | OTHER_NAME).items() <= http.get("/health").json().items()
    [documented] = [answer for (_, route), answer in ANSWERS.items() if route == ("GET", "/api/v1/assistant/templates")]
    real = http.get("/api/v1/assistant/templates").json()["templates"]
    for task, text in documented["templates"].items():
        assert set(re.findall(r"{\w+}", text)) <= set(re.findall(r"{\w+}", real[task])), task


@named(CODE["python"])
def test_python(server: Process, example: Example) -> None:
    assert run(sys.executable, "-c", as_written(example, server)).strip()


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
@named(CODE["typescript"])
def test_javascript(server: Process, tmp_path: Path, example: Example) -> None:
    script = tmp_path / "example.mjs"  # a module may wait at its top, as the example does
    script.write_text(as_written(example, server))
    assert "factorial" in run("node", script)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@named(CODE["bash"])
def test_curl(server: Process, example: Example) -> None:
    command = as_written(example, server)
    assert command.count(r" \\n ") == 2  # line joins that lost their shape
    answer = json.loads(run("bash", "-c", command.replace(r" \\n ", " \\\n ")))
    documented = ANSWERS[ASSISTANT, ("POST", "/api/v1/assistant/generate")]
    assert list(differences(documented, answer)) == [] and answer["response"].startswith("def factorial(n):")


def test_websocket(server: Process) -> None:
    [example] = [e for e in ALL if e.heading.startswith("WebSocket") and e.language == "json"]
    with connect(server.url.replace("http", "ws", 1) + "/api/v1/assistant/stream", open_timeout=LONG_PATIENCE) as connection:
        connection.send(example.text)
        events = [json.loads(connection.recv(LONG_PATIENCE))]
        while events[-1]["type"] == "token":
            events.append(json.loads(connection.recv(LONG_PATIENCE)))
    assert len(events) > 1 and all(event["text"] for event in events[:-1])
    assert events[-1]["type"] == "done" and events[-1]["tokens_used"] > 0 and events[-1]["task"] == "generate"


def test_limits_and_their_headers(http: httpx.Client) -> None:
    [example] = [e for e in ALL if e.heading == "Rate Limiting" and "X-RateLimit" in e.text]
    names = [line.partition(":")[0] for line in example.text.splitlines()]
    for path, limit in (("/api/v1/models/current", 100), ("/models/current", 60)):
        response = http.get(path)
        told = {name: int(response.headers[name]) for name in names}
        assert told["X-RateLimit-Limit"] == limit and 0 <= told["X-RateLimit-Remaining"] < limit
        assert told["X-RateLimit-Reset"] > time.time() - 1
    assert not any(name in http.get("/health").headers for name in names)


def test_a_burst_is_of_ten(server: Process) -> None:
    assert "Burst size of 10 requests" in LOCALLAB.read_text()
    elsewhere = httpx.HTTPTransport(local_address="127.0.0.2")  # has a limit of its own
    with httpx.Client(base_url=server.url, transport=elsewhere, timeout=LONG_PATIENCE) as http:
        answers = [http.get("/models/current") for _ in range(61)]
    assert all(answer.status_code == 200 for answer in answers[:10])
    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused and set(refused[0].json()) == {"detail"} and int(refused[0].headers["retry-after"]) >= 1


def test_errors(http: httpx.Client) -> None:
    [example] = [e for e in ALL if e.heading == "Error Handling"]
    failures = {
        400: http.post("/generate", json={"prompt": "x", "temperature": -1}),
        404: http.post("/generate", json={"prompt": "x", "model_id": "no-such-model"}),
        500: http.post("/models/load", json={"model_id": "broken:1b"}),
    }
    for status, response in failures.items():
        assert response.status_code == status, response.text
        assert list(differences(example.json, response.json())) == []
        assert f"`{status}`" in LOCALLAB.read_text()
    assert http.get("/models/current").json()["loaded"] is True


def test_the_optional_key_may_be_sent(http: httpx.Client) -> None:
    [example] = [e for e in ALL if e.heading == "Authentication"]
    name, value = example.text.split(": ", 1)
    assert http.get("/api/v1/models/current", headers={name: value}).status_code == 200


@named(REQUESTS)
def test_requests_are_as_openapi_says(described: Described, model: str, example: Example) -> None:
    assert example.route
    operation = described.operation("post", example.route[1])
    sent = body(example, model)
    described.check(sent, described.body(operation))
    assert set(sent) <= set(described.body(operation)["properties"])


@named([example for example in JSON if example.is_answer])
def test_answers_are_as_openapi_says(described: Described, example: Example) -> None:
    assert example.route
    verb, path = example.route
    operation = described.operation(verb.lower(), path)
    content = operation["responses"]["200"]["content"]["application/json"]
    properties = described.resolve(content["schema"])["properties"]
    documented = filled(example.json) | (OTHER_NAME if "service" in example.json else {})
    for name, value in documented.items():
        partial = path == "/chat" and name == "choices"  # the document leaves most of a choice out
        described.check(value, {"type": "array"} if partial else properties[name])
