"""Streams: several events at once, errors, clients that leave or do not read."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest
import uvicorn
from sse_starlette.sse import AppStatus

from locallab.chat.turn import Turn
from locallab.engine import LOCAL
from locallab.engine.request import SamplingParams, TokenEvent, Usage
from locallab.errors import EngineFailure, Overloaded, SlowReader
from locallab.server import streaming
from locallab.server.dialects.native.generate import NativeFormatter
from locallab.server.dialects.openai.stream import ChatFormatter, Head
from locallab.server.inference import generation
from locallab.server.inference.answer import answer
from locallab.server.inference.generation import ClientGone, Generation
from tests.support.fake_engine import TEXT, say
from tests.support.http_server import Served
from tests.support.sse import DONE, parsed
from tests.support.wait import until

USER: list[Any] = [{"role": "user", "content": "hi"}]
ROUTES: dict[str, dict[str, Any]] = {
    "/generate": {"prompt": "hi"},
    "/chat": {"messages": USER},
    "/v1/chat/completions": {"messages": USER},
    "/v1/completions": {"prompt": "hi"},
}
routes = pytest.mark.parametrize("path", ROUTES)


def text_of(path: str, event: Any) -> str:
    if path == "/generate":
        return str(event["response"])
    choice = event["choices"][0]
    return str(choice.get("text") or choice.get("delta", {}).get("content") or "")


@routes
@pytest.mark.parametrize("size", [1, 2, 7, 100])
def test_a_stream_is_the_whole_answer_in_pieces(served: Served, path: str, size: int) -> None:
    served.script(*say('naïve 😀 «ok» \u2028 \x00 "q" \\ end', size))
    whole = served.http.post(path, json=ROUTES[path]).json()
    *pieces, done = parsed(served.http.post(path, json={**ROUTES[path], "stream": True}).text)
    text = (
        whole["response"]
        if path == "/generate"
        else whole["choices"][0].get("text") or whole["choices"][0]["message"]["content"]
    )
    assert "".join(text_of(path, piece) for piece in pieces) == text == 'naïve 😀 «ok» \u2028 \x00 "q" \\ end'
    assert done == DONE


@routes
def test_client_that_leaves_a_stream(served: Served, path: str) -> None:
    served.script(b"a", threading.Event())
    with served.http.stream("POST", path, json={**ROUTES[path], "stream": True}) as response:
        body = response.iter_bytes()
        next(body)
        assert served.engine.cancelled == []
    until(lambda: served.engine.cancelled != [])
    until(lambda: served.engine.stats().running == 0)


@routes
def test_client_that_leaves_before_the_answer(served: Served, path: str) -> None:
    served.script(b"a", threading.Event())
    for stream in (False, True):
        served.engine.reset()
        served.script(threading.Event())
        with pytest.raises(httpx.ReadTimeout):
            served.http.post(path, json={**ROUTES[path], "stream": stream}, timeout=0.1)
        until(lambda: len(served.engine.cancelled) == 1)
        until(lambda: served.engine.stats().running == 0)


def test_client_that_leaves_one_of_several_answers(served: Served) -> None:
    hold = threading.Event()
    served.engine.script = lambda prompt, params: [b"a"] if params.seed == 0 else [b"b", hold]
    body = {"messages": USER, "stream": True, "n": 3, "seed": 0}
    with served.http.stream("POST", "/v1/chat/completions", json=body) as response:
        chunks = response.iter_bytes()
        next(chunks)
        until(lambda: served.engine.stats().running == 2)
    until(lambda: len(served.engine.cancelled) == 2)


def test_answer_that_ended_is_not_cancelled(served: Served) -> None:
    served.http.post("/generate", json={"prompt": "hi"})
    served.http.post("/generate", json={"prompt": "hi", "stream": True})
    assert served.engine.cancelled == []


@routes
@pytest.mark.parametrize("stream", [False, True])
def test_overloaded(served: Served, path: str, stream: bool) -> None:
    served.engine.full = True
    response = served.http.post(path, json={**ROUTES[path], "stream": stream})
    assert response.status_code == 503 and response.headers["retry-after"] == "7"
    if path.startswith("/v1"):
        message = "the server is busy: 3 requests are waiting already"
        assert response.json() == {"error": {"message": message, "type": "server_error", "param": None, "code": "overloaded"}}
    else:
        assert "busy" in response.json()["detail"]


def test_overloaded_by_the_second_of_several_answers(served: Served) -> None:
    def script(prompt: list[int], params: SamplingParams) -> list[Any]:
        if params.seed == 1:
            raise Overloaded(1, 7)
        return [threading.Event()]

    served.engine.script = script
    response = served.http.post("/v1/chat/completions", json={"messages": USER, "n": 2, "seed": 0})
    assert response.status_code == 503
    until(lambda: served.engine.stats().running == 0)


@routes
@pytest.mark.parametrize("stream", [False, True])
def test_failure_before_the_first_byte(served: Served, path: str, stream: bool) -> None:
    served.script(EngineFailure("llama_decode returned -3"))
    response = served.http.post(path, json={**ROUTES[path], "stream": stream})
    assert response.status_code == 500 and "llama_decode returned -3" in response.text


@routes
@pytest.mark.parametrize("error", [EngineFailure("decode failed"), ZeroDivisionError("secret")], ids=["known", "unknown"])
def test_failure_in_mid_stream(served: Served, path: str, error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    go = threading.Event()
    served.script(b"a", go, error)
    with served.http.stream("POST", path, json={**ROUTES[path], "stream": True}) as response:
        body = response.iter_text()
        first = next(body)
        go.set()
        *_, last = parsed(first + "".join(body))
    message = last["detail"] if path == "/generate" else last["error"]["message"]
    assert message == (
        "decode failed" if isinstance(error, EngineFailure) else "internal error; the server's log has the details"
    )
    if path != "/generate":
        assert last["error"]["type"] == "server_error" and set(last["error"]) == {"message", "type", "param", "code"}
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert path in record.getMessage() and bool(record.exc_info) == isinstance(error, ZeroDivisionError)


def test_openai_client_raises_for_a_failure_in_mid_stream(served: Served) -> None:
    go = threading.Event()
    served.script(b"a", go, EngineFailure("decode failed"))
    stream = served.openai.chat.completions.create(model="m", messages=USER, stream=True)
    with pytest.raises(openai.APIError, match="decode failed"):
        for _ in stream:
            go.set()


class Wire:
    """ASGI's receive and send of one request; `left` is set when the client leaves."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.left = asyncio.Event()
        self.unread = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive(self) -> dict[str, Any]:
        if self.unread:
            return self.unread.pop()
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)


class Held:
    """An engine that does nothing by itself: the test calls the listeners."""

    def __init__(self) -> None:
        self.listeners: list[Any] = []
        self.cancelled: list[int] = []

    def submit(self, prompt: Any, params: Any, listener: Any, **how: Any) -> int:
        self.listeners.append(listener)
        return len(self.listeners) - 1

    def cancel(self, request_id: int) -> None:
        self.cancelled.append(request_id)


JOB = ([1], SamplingParams())
END = TokenEvent("c", finish_reason="stop", usage=Usage(1, 3, 0))


PLAIN = Turn("", None, (), None, (), None, False)


async def answered(engine: Held, wire: Wire, formatter: Any, jobs: list[Any], stream: bool) -> None:
    request = SimpleNamespace(receive=wire.receive, state=SimpleNamespace(caller=LOCAL, spend=lambda model, usage: None))
    loaded = SimpleNamespace(
        text_engine=engine, spec=SimpleNamespace(id="m"), name=lambda params: "m", adapted=lambda params: params
    )
    response = await answer(request, loaded, jobs, formatter, stream=stream)  # type: ignore[arg-type]
    await response({"type": "http", "method": "POST", "path": "/"}, wire.receive, wire.send)  # type: ignore[arg-type]


def test_what_is_ready_at_once_goes_out_in_one_write() -> None:
    async def scenario() -> list[dict[str, Any]]:
        engine, wire = Held(), Wire()
        stream = streaming.EventStream(Generation(engine, [JOB]), NativeFormatter("m"))  # type: ignore[arg-type]
        for event in (TokenEvent("a"), TokenEvent(""), TokenEvent("b"), END):
            engine.listeners[0](event)
        await stream({"type": "http", "method": "POST", "path": "/"}, wire.receive, wire.send)
        return wire.sent

    start, body = asyncio.run(scenario())
    assert start["status"] == 200 and not body.get("more_body")
    assert [event.get("response") for event in parsed(body["body"].decode())[:-1]] == ["a", "b", "c", ""]


def test_token_without_text_sends_nothing() -> None:
    async def scenario() -> list[dict[str, Any]]:
        engine, wire = Held(), Wire()
        stream = streaming.EventStream(Generation(engine, [JOB]), NativeFormatter("m"))  # type: ignore[arg-type]
        running = asyncio.ensure_future(stream({"type": "http", "method": "POST", "path": "/"}, wire.receive, wire.send))
        for event in (TokenEvent(""), TokenEvent(""), END):
            engine.listeners[0](event)
            for _ in range(3):
                await asyncio.sleep(0)
        await running
        return wire.sent

    assert [message["type"] for message in asyncio.run(scenario())] == ["http.response.start", "http.response.body"]


@pytest.mark.parametrize("stream", [False, True])
def test_leaving_wins_over_the_answer_that_is_not_complete(stream: bool) -> None:
    async def scenario() -> Held:
        engine, wire = Held(), Wire()
        formatter = ChatFormatter(Head("x", 0, "m"), PLAIN, 2)
        running = asyncio.ensure_future(answered(engine, wire, formatter, [JOB, JOB], stream))
        while not (engine.listeners or running.done()):
            await asyncio.sleep(0)
        wire.left.set()
        for _ in range(20):
            await asyncio.sleep(0)
        engine.listeners[0](END)
        with pytest.raises(ClientGone):
            await running
        assert wire.sent == []
        return engine

    assert asyncio.run(scenario()).cancelled == [0, 1]


def test_leaving_cancels_only_what_is_not_complete() -> None:
    async def scenario() -> Held:
        engine, wire = Held(), Wire()
        formatter = ChatFormatter(Head("x", 0, "m"), PLAIN, 2)
        running = asyncio.ensure_future(answered(engine, wire, formatter, [JOB, JOB], True))
        while not (engine.listeners or running.done()):
            await asyncio.sleep(0)
        engine.listeners[0](END)
        while len(wire.sent) < 2 and not running.done():
            await asyncio.sleep(0)
        wire.left.set()
        await running
        assert all(message.get("more_body", True) for message in wire.sent), "there is no end for one that has left"
        return engine

    assert asyncio.run(scenario()).cancelled == [1]


def test_cancelled_task_cancels_the_request() -> None:
    async def scenario() -> Held:
        engine, wire = Held(), Wire()
        task = asyncio.ensure_future(answered(engine, wire, NativeFormatter("m"), [JOB], False))
        while not (engine.listeners or task.done()):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return engine

    assert asyncio.run(scenario()).cancelled == [0]


def test_client_that_does_not_read(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(streaming, "IDLE", 0.01)
    monkeypatch.setattr(streaming, "SEND_TIMEOUT", 0.05)

    class Stalled(Wire):
        async def send(self, message: Any) -> None:
            if len(self.sent) == 2:
                await self.left.wait()
            await super().send(message)

    async def scenario() -> tuple[Held, Wire]:
        engine, wire = Held(), Stalled()
        stream = streaming.EventStream(Generation(engine, [JOB]), NativeFormatter("m"))  # type: ignore[arg-type]
        running = asyncio.ensure_future(stream({"type": "http", "method": "POST", "path": "/"}, wire.receive, wire.send))
        engine.listeners[0](TokenEvent("a"))
        while len(wire.sent) < 2 and not running.done():
            await asyncio.sleep(0)
        engine.listeners[0](TokenEvent("b"))
        await asyncio.wait_for(running, 20)
        return engine, wire

    engine, wire = asyncio.run(scenario())
    assert engine.cancelled == [0] and len(wire.sent) == 2
    assert "POST /: the client has not read for 0.05 s" in caplog.text


def test_an_answer_that_nobody_reads_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "UNREAD_TIME", 0.02)

    async def scenario() -> None:
        engine = Held()
        with Generation(engine, [JOB]) as running:  # type: ignore[arg-type]
            for _ in range(20):  # more than the bound, but read in time
                for _ in range(100):
                    engine.listeners[0](TokenEvent("word"))
                assert len(await anext(running)) == 100
            sent = 0
            while not engine.cancelled:
                engine.listeners[0](TokenEvent("word"))
                sent += 1
                await asyncio.sleep(0.0001)
                assert sent < 10_000
            assert sent * 4 < generation.UNREAD_BYTES * 2
            engine.listeners[0](TokenEvent("", finish_reason="cancelled", usage=Usage(1, sent, 0)))
            assert len(await anext(running)) == sent
            with pytest.raises(SlowReader, match="KiB are waiting"):
                await anext(running)

    asyncio.run(scenario())


def test_slow_client_gets_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "IDLE", 0.01)
    monkeypatch.setattr(streaming, "SEND_TIMEOUT", 5.0)

    class Slow(Wire):
        async def send(self, message: Any) -> None:
            await asyncio.sleep(0.05)
            await super().send(message)

    async def scenario() -> Wire:
        engine, wire = Held(), Slow()
        stream = streaming.EventStream(Generation(engine, [JOB]), NativeFormatter("m"))  # type: ignore[arg-type]
        running = asyncio.ensure_future(stream({"type": "http", "method": "POST", "path": "/"}, wire.receive, wire.send))
        for event in (TokenEvent("a"), TokenEvent("b"), END):
            engine.listeners[0](event)
            await asyncio.sleep(0.07)
        await running
        return wire

    sent = asyncio.run(scenario()).sent
    assert sent[0]["type"] == "http.response.start" and [message.get("more_body") for message in sent[-1:]] == [False]
    events = parsed(b"".join(message.get("body", b"") for message in sent).decode())
    assert "".join(event.get("response") for event in events[:-1]) == "abc"


def test_connection_that_is_not_read_does_not_hold_the_engine(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "IDLE", 0.02)
    monkeypatch.setattr(streaming, "SEND_TIMEOUT", 0.1)
    served.script(*[b"x" * 2**16] * 400, threading.Event())
    body = b'{"prompt": "hi", "stream": true, "max_length": -1}'
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # the system would read megabytes for the client
        client.connect((served.http.base_url.host, served.http.base_url.port))
        client.sendall(b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        until(lambda: served.engine.cancelled != [])
        until(lambda: served.engine.stats().running == 0)


def test_a_stop_of_the_server_ends_no_stream_by_itself() -> None:
    """sse-starlette would end them at once; how long they may last is up to --grace."""
    server = uvicorn.Server(uvicorn.Config("none", log_config=None))
    server.handle_exit(signal.SIGTERM, None)
    assert server.should_exit and not AppStatus.should_exit


def test_many_clients_at_once(served: Served) -> None:
    async def scenario() -> list[str]:
        client = openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)

        async def one(index: int) -> str:
            stream = await client.completions.create(model="m", prompt=f"{index}", stream=True)
            return "".join([chunk.choices[0].text async for chunk in stream])

        async with client:
            return await asyncio.gather(*(one(index) for index in range(32)))

    served.engine.script = lambda prompt, params: say(bytes(prompt[1:]).decode() * 20, 2)
    assert asyncio.run(scenario()) == [f"{index}" * 20 for index in range(32)]


def test_text_is_the_same_with_every_client(served: Served) -> None:
    with served.openai.chat.completions.with_streaming_response.create(model="m", messages=USER, stream=True) as response:
        assert "".join(text_of("", event) for event in parsed("".join(response.iter_text()))[:-1]) == TEXT
