"""Two hundred clients at once, over HTTP and WebSocket, some of them rude: nobody's answer is lost, nothing is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from websockets.asyncio.client import connect

from tests.support.served_process import Process, serving

N_CLIENTS = 200
N_TOKENS = 8
SOCKET = "/api/v1/assistant/stream"
MALFORMED: list[tuple[str, bytes]] = [
    ("/v1/chat/completions", b'{"messages": '),
    ("/v1/chat/completions", b'{"messages": [{"role": "robot", "content": "x"}]}'),
    ("/generate", b'{"prompt": 7}'),
    ("/api/v1/assistant/generate", b'{"prompt": "x", "task": "audit"}'),
    ("/chat", b"[]"),
]


@pytest.fixture(scope="module")
def server(model_path: Path) -> Iterator[Process]:
    with serving(model_path, "--context", "1024", "--no-rate-limit", "--queue", "400") as process:
        yield process


async def answered(http: httpx.AsyncClient, index: int) -> None:
    """A client that waits for its answer, streamed or whole, in one dialect or another."""
    body: dict[str, Any] = {"prompt": f"Tell me about the number {index}.", "ignore_eos": True, "temperature": 0}
    match index % 4:
        case 0:
            reply = (await http.post("/generate", json={**body, "max_length": N_TOKENS})).json()
            assert reply["usage"]["completion_tokens"] == N_TOKENS, reply
        case 1:
            messages = [{"role": "user", "content": body.pop("prompt")}]
            path = "/v1/chat/completions"
            reply = (await http.post(path, json={**body, "messages": messages, "max_tokens": N_TOKENS})).json()
            assert reply["usage"]["completion_tokens"] == N_TOKENS, reply
        case 2:
            path = "/v1/completions"
            text = (await http.post(path, json={**body, "max_tokens": N_TOKENS, "stream": True})).text
            events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
            assert events[-1]["choices"][0]["finish_reason"] == "length", text
            assert text.rstrip().endswith("[DONE]")
        case _:
            path = "/api/v1/assistant/chat"
            reply = (await http.post(path, json={**body, "max_tokens": N_TOKENS})).json()
            assert reply["tokens_used"] == N_TOKENS, reply


async def answered_by_socket(url: str, index: int) -> None:
    """Three requests over one connection, answered each to its end, a malformed message among them."""
    async with connect(url) as socket:
        await socket.send("{not json")
        for which in range(3):
            message = {"prompt": f"Say {index}.", "task": "chat", "id": which, "max_tokens": N_TOKENS, "ignore_eos": True}
            await socket.send(json.dumps(message))
        done: dict[int, int] = {}
        errors = 0
        while len(done) < 3 or not errors:
            event = json.loads(await socket.recv())
            errors += event["type"] == "error"
            if event["type"] == "done":
                done[event["id"]] = event["tokens_used"]
        assert done == {0: N_TOKENS, 1: N_TOKENS, 2: N_TOKENS}
        assert errors == 1


async def leaving(http: httpx.AsyncClient, index: int) -> None:
    """A client that goes away in the middle of a long answer, or before it has begun."""
    body = {"prompt": f"A long story about {index}.", "max_length": 200, "ignore_eos": True, "stream": True}
    with contextlib.suppress(asyncio.TimeoutError):
        async with asyncio.timeout(random.Random(index).uniform(0.05, 3)):
            async with http.stream("POST", "/generate", json=body) as response:
                async for _ in response.aiter_lines():
                    pass


async def leaving_by_socket(url: str, index: int) -> None:
    async with connect(url) as socket:
        story = {"prompt": f"A story about {index}.", "task": "chat", "max_tokens": 200, "ignore_eos": True}
        await socket.send(json.dumps(story))
        if index % 2:
            await socket.recv()


async def malformed(http: httpx.AsyncClient, index: int) -> None:
    path, body = MALFORMED[index % len(MALFORMED)]
    reply = await http.post(path, content=body)
    assert reply.status_code == 400, reply.text


async def everybody(url: str) -> list[object]:
    socket = url.replace("http", "ws", 1) + SOCKET
    limits = httpx.Limits(max_connections=N_CLIENTS)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as http:
        clients = []
        for index in range(N_CLIENTS):
            match index % 12:
                case 0 | 1:
                    clients.append(answered_by_socket(socket, index))
                case 2 | 3:
                    clients.append(leaving_by_socket(socket, index))
                case 4 | 5:
                    clients.append(leaving(http, index))
                case 6:
                    clients.append(malformed(http, index))
                case _:
                    clients.append(answered(http, index))
        return [result for result in await asyncio.gather(*clients, return_exceptions=True) if result is not None]


async def idle(url: str) -> dict[str, Any]:
    """The engine's figures once nothing runs any more."""
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        while True:
            (model,) = (await http.get("/system/info")).json()["models"]
            stats: dict[str, Any] = model["stats"]
            if not stats["running"] and not stats["waiting"]:
                return stats
            await asyncio.sleep(0.05)


def test_nothing_is_lost_and_nothing_is_left(server: Process) -> None:
    process = psutil.Process(server.pid)
    assert asyncio.run(everybody(server.url)) == []
    stats = asyncio.run(idle(server.url))
    assert stats["kv_used"] == stats["cached"], "what is in the KV pool belongs to the prefix cache alone"
    settled, handles = process.memory_info().rss, process.num_fds()
    assert asyncio.run(everybody(server.url)) == []
    asyncio.run(idle(server.url))
    grown = process.memory_info().rss - settled
    assert grown < 64 << 20, f"memory grew by {grown >> 20} MiB"
    assert process.num_fds() <= handles + 4
    assert server.process.poll() is None
