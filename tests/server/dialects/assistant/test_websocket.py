"""A conversation over a WebSocket with a scripted other side: slow readers, stopping servers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect

from locallab.engine import LOCAL
from locallab.engine.request import SamplingParams
from locallab.errors import EngineFailure
from locallab.models.store import Store
from locallab.pool import Pool
from locallab.server.dialects.assistant.templates import Templates
from locallab.server.dialects.assistant.websocket import AT_ONCE, PATH, REFUSED, Conversation
from locallab.server.websocket_protocol import RESTARTING
from locallab.settings import EngineSettings, ServerSettings
from tests.support.dialect_requests import TASKS
from tests.support.fake_engine import TEXT, FakeEngine, Step, registry, say
from tests.support.http_server import Serve, Served, start_in
from tests.support.wait import PATIENCE, until

Script = Callable[["Peer"], Awaitable[None]]


class Peer:
    """The client and the server around a conversation. Sends block while `reading` is not set."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.outgoing: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.reading = asyncio.Event()
        self.reading.set()
        self.gone = False

    async def send(self, message: dict[str, Any]) -> None:
        await self.reading.wait()
        if self.gone:
            raise BrokenPipeError
        self.outgoing.put_nowait(message)

    def say(self, **message: Any) -> None:
        self.incoming.put_nowait({"type": "websocket.receive", "text": json.dumps(message)})

    def ask(self, **message: Any) -> None:
        self.say(**{"prompt": "some words", "task": "chat", **message})

    def end(self, code: int) -> None:
        self.incoming.put_nowait({"type": "websocket.disconnect", "code": code})

    async def heard(self) -> dict[str, Any]:
        return await asyncio.wait_for(self.outgoing.get(), PATIENCE)

    async def event(self) -> dict[str, Any]:
        return dict(json.loads((await self.heard())["text"]))

    async def closed(self) -> int:
        message = await self.heard()
        assert message["type"] == "websocket.close"
        return int(message["code"])

    async def until(self, holds: Callable[[], bool]) -> None:
        async def wait() -> None:
            while not holds():
                await asyncio.sleep(0.002)

        await asyncio.wait_for(wait(), PATIENCE)


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    def make(path: Path, settings: EngineSettings, post: Any) -> Any:
        return FakeEngine(path, settings, post, context=8192)

    pool = Pool(registry(tmp_path), Store(tmp_path / "store"), engine=make, grace=0.0)
    pool.load_now("tiny:1b")
    yield pool
    pool.close()


SCOPE = {"state": {"role": "admin", "caller": LOCAL, "spend": lambda model, usage: None}}


def converse(pool: Pool, script: Script, *steps: Step) -> None:
    """Play `script` against a conversation whose model emits `steps`; the conversation must end with it."""

    async def run() -> None:
        pool.start(asyncio.get_running_loop())
        assert pool.current is not None
        engine: Any = pool.current.engine
        engine.script = lambda prompt, params: list(steps)
        peer = Peer(engine)
        peer.incoming.put_nowait({"type": "websocket.connect"})
        talk = Conversation(pool, ServerSettings(), Templates.load(), SCOPE, peer.incoming.get, peer.send)
        task = asyncio.create_task(talk.run())
        assert (await peer.heard())["type"] == "websocket.accept"
        await script(peer)
        await asyncio.wait_for(task, PATIENCE)
        assert len(asyncio.all_tasks()) == 1
        await peer.until(lambda: engine.stats().running == 0)

    asyncio.run(run())


def test_what_comes_while_the_reader_is_slow_is_one_event(pool: Pool) -> None:
    go, end = threading.Event(), threading.Event()

    async def script(peer: Peer) -> None:
        peer.ask()
        assert (await peer.event())["text"] == "a"
        peer.reading.clear()
        go.set()
        await peer.until(lambda: peer.engine.totals.completion_tokens == 202)
        assert peer.outgoing.empty()
        end.set()
        peer.reading.set()
        text = ""
        events = 0
        while (event := await peer.event())["type"] == "token":
            text += event["text"]
            events += 1
        assert text == "b" * 201 + "c" and events <= 3 and event["tokens_used"] == 203
        peer.end(1000)

    converse(pool, script, b"a", go, *[b"b"] * 201, end, b"c")


def test_a_slow_reader_that_leaves(pool: Pool) -> None:
    async def script(peer: Peer) -> None:
        peer.ask()
        assert (await peer.event())["text"] == "a"
        peer.reading.clear()
        peer.end(1001)
        await peer.until(lambda: peer.engine.cancelled != [])

    converse(pool, script, b"a", threading.Event())


@pytest.mark.parametrize("asked", [False, True])
def test_a_client_that_has_gone_when_it_is_told(pool: Pool, asked: bool) -> None:
    go = threading.Event()

    async def script(peer: Peer) -> None:
        if asked:
            peer.ask()
            await peer.event()
        peer.gone = True
        go.set()
        peer.say(type="nonsense")  # is answered by the reader itself

    converse(pool, script, b"a", go, b"b")


def test_a_server_that_stops_lets_requests_end(pool: Pool) -> None:
    go = threading.Event()

    async def script(peer: Peer) -> None:
        peer.ask(id=1)
        assert (await peer.event())["text"] == "a"
        peer.end(RESTARTING)
        peer.ask(id=2)
        assert await peer.event() == {"type": "error", "id": 2, "detail": "the server is stopping"}
        assert peer.outgoing.empty()
        go.set()
        while (event := await peer.event())["type"] == "token":
            pass
        assert (event["type"], event["finish_reason"]) == ("done", "stop")
        assert await peer.closed() == RESTARTING
        peer.end(RESTARTING)  # as servers confirm a close

    converse(pool, script, b"a", go, b"b")


def test_a_server_that_stops_lets_requests_be_cancelled(pool: Pool) -> None:
    async def script(peer: Peer) -> None:
        peer.ask(id=1)
        await peer.event()
        peer.end(RESTARTING)
        peer.say(type="cancel", id=1)
        assert (await peer.event())["finish_reason"] == "cancelled"
        assert await peer.closed() == RESTARTING
        peer.end(RESTARTING)

    converse(pool, script, b"a", threading.Event())


def test_a_server_that_stops_closes_what_is_idle(pool: Pool) -> None:
    async def script(peer: Peer) -> None:
        peer.end(RESTARTING)
        assert await peer.closed() == RESTARTING
        peer.end(RESTARTING)

    converse(pool, script)


def test_a_server_that_stops_and_a_client_that_leaves(pool: Pool) -> None:
    async def script(peer: Peer) -> None:
        peer.ask()
        await peer.event()
        peer.end(RESTARTING)
        peer.end(1006)
        await peer.until(lambda: peer.engine.cancelled != [])

    converse(pool, script, b"a", threading.Event())


def test_an_engine_that_closes_ends_requests_with_an_error(pool: Pool) -> None:
    async def script(peer: Peer) -> None:
        peer.ask(id=1)
        await peer.event()
        peer.end(RESTARTING)
        await asyncio.to_thread(pool.close)
        error = await peer.event()
        assert (error["type"], error["id"]) == ("error", 1) and "closed" in error["detail"]
        assert await peer.closed() == RESTARTING
        peer.end(RESTARTING)

    converse(pool, script, b"a", threading.Event())


def test_a_key_that_is_not_valid_any_more_closes_the_connection(pool: Pool) -> None:
    async def script(peer: Peer) -> None:
        peer.ask()
        await peer.event()
        peer.end(REFUSED)
        assert await peer.closed() == REFUSED
        assert peer.engine.cancelled != []

    converse(pool, script, b"a", threading.Event())


PROMPT = "words that no program begins with"
Event = dict[str, Any]


@pytest.fixture(scope="module")
def roomy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Serve with a large context: a token is a byte here, and the system messages are long."""
    with start_in(tmp_path_factory.mktemp("socket"))(engine={"context": 8192}) as served:
        yield served


@pytest.fixture
def served(roomy: Served) -> Served:
    roomy.engine.reset()
    return roomy


class Client:
    """One connection."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    def send(self, **message: Any) -> None:
        self.connection.send(json.dumps(message))

    def ask(self, **message: Any) -> None:
        self.send(**{"prompt": PROMPT, "task": "chat", **message})

    def event(self) -> Event:
        return dict(json.loads(self.connection.recv(PATIENCE)))

    def answer(self) -> tuple[str, Event]:
        """Return the text up to the next event of another type, and that event."""
        text = ""
        while (event := self.event())["type"] == "token":
            text += event["text"]
        return text, event

    def works(self) -> None:
        """Assert that the connection still works."""
        self.ask(id="again")
        text, last = self.answer()
        assert text and (last["type"], last["id"]) == ("done", "again")


@contextlib.contextmanager
def connected(served: Served, **options: Any) -> Iterator[Client]:
    with connect(served.url.replace("http", "ws", 1) + PATH, open_timeout=PATIENCE, **options) as connection:
        yield Client(connection)


@pytest.fixture
def client(served: Served) -> Iterator[Client]:
    with connected(served) as client:
        yield client


def hold(served: Served, *first: bytes) -> threading.Event:
    """Make every answer wait after `first` until the returned event is set."""
    go = threading.Event()
    served.engine.script = lambda prompt, params: [*first, go, b"!"]
    return go


def running(served: Served) -> int:
    return served.engine.stats().running


# What is answered.


def test_the_documents_message(served: Served, client: Client) -> None:
    client.connection.send('{"prompt": "...", "task": "generate"}')
    events = [client.event()]
    while events[-1]["type"] == "token":
        events.append(client.event())
    *tokens, last = events
    assert all(set(each) == {"type", "text"} for each in tokens) and "".join(each["text"] for each in tokens) == TEXT
    assert (last["type"], last["finish_reason"], last["model"]) == ("done", "stop", "tiny:1b")
    assert last["tokens_used"] == last["usage"]["completion_tokens"] == len(TEXT.encode())


def test_half_of_a_surrogate_pair_and_a_history_of_foreign_blocks(served: Served, client: Client) -> None:
    history = [{"role": "robot", "content": [{"type": "image"}, {"type": "hologram", "\udc00": "\ud83d"}]}]
    client.ask(id="half \ud83d", prompt="half \ud83d", history=history)
    text, last = client.answer()
    assert (text, last["type"], last["id"]) == (TEXT, "done", "half \ufffd")
    assert "half \ufffd" in served.engine.submitted[-1][0] and "[image: not shown]" in served.engine.submitted[-1][0]


def test_fields_that_it_does_not_know(served: Served, client: Client) -> None:
    client.ask(id=1, type="request", frobnicate=1)
    assert client.answer()[1]["notes"] == "unknown and ignored: frobnicate"
    client.ask(id=2)
    assert "notes" not in client.answer()[1]
    client.ask(id=3, grammar="x")
    assert client.event()["detail"].startswith("grammar: is not supported")


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("prompt", [PROMPT, "def f(x):"])
def test_the_same_answer_as_over_http(served: Served, client: Client, task: str, prompt: str) -> None:
    served.script(*say("words\n```py\nx = 1\n```\nmore"))
    response = served.http.post(f"/api/v1/assistant/{task}", json={"prompt": prompt, "language": "py"})
    whole, cache = response.json(), response.headers["x-locallab-cache"]
    client.send(prompt=prompt, task=task, language="py", stream=True)
    text, last = client.answer()
    assert text == whole.pop("response") and last == {"type": "done", **whole, "cache": cache}


def test_json(served: Served, client: Client) -> None:
    served.script(*say('{"findings": [], "summary": "fine"}'))
    client.ask(task="audit", format="json")
    assert client.answer()[1]["result"] == {"findings": [], "summary": "fine"}


def test_several_requests_over_one_connection(served: Served, client: Client) -> None:
    go = threading.Event()
    served.engine.script = lambda prompt, params: [b"slow", go, b"ly"] if params.seed == 1 else [b"quick"]
    client.ask(id="slow", seed=1)
    assert client.event() == {"type": "token", "id": "slow", "text": "slow"}
    client.ask(id=7)
    assert client.event() == {"type": "token", "id": 7, "text": "quick"}
    assert (client.event()["id"], running(served)) == (7, 1)
    go.set()
    text, last = client.answer()
    assert (text, last["id"], last["type"]) == ("ly", "slow", "done")


def test_as_many_at_once_as_there_may_be(served: Served, client: Client) -> None:
    go = hold(served)
    for index in range(AT_ONCE):
        client.ask(id=index)
    until(lambda: running(served) == AT_ONCE)
    client.ask(id="more")
    error = client.event()
    assert (error["type"], error["id"]) == ("error", "more") and str(AT_ONCE) in error["detail"]
    go.set()
    ended = set()
    while len(ended) < AT_ONCE:
        if (event := client.event())["type"] == "done":
            ended.add(event["id"])
    client.works()


@pytest.mark.parametrize("given", [0, -1, 2**62, "", "a", "ä" * 128])
def test_ids_come_back(client: Client, given: Any) -> None:
    client.ask(id=given)
    assert {event["id"] for event in (client.event(), client.answer()[1])} == {given}


def test_an_id_may_be_used_again_but_not_at_once(served: Served, client: Client) -> None:
    go = hold(served, b"a")
    client.ask(id="x")
    assert client.event()["text"] == "a"
    client.ask(id="x")
    assert client.event() == {"type": "error", "id": "x", "detail": "id: 'x' is the id of a request under way"}
    go.set()
    assert client.answer()[1]["type"] == "done"
    client.ask(id="x")
    assert client.answer()[1]["type"] == "done"


def test_binary_messages_are_json_too(client: Client) -> None:
    client.connection.send(json.dumps({"prompt": PROMPT, "task": "chat"}).encode())
    assert client.answer()[0] == TEXT


def test_pings_are_answered(served: Served, client: Client) -> None:
    go = hold(served, b"a")
    client.ask()
    assert client.event()["text"] == "a"
    assert client.connection.ping().wait(PATIENCE)
    go.set()
    assert client.answer()[1]["type"] == "done"


# What the client ends.


def test_cancel(served: Served, client: Client) -> None:
    hold(served, b"a", b"b")
    for name in ("one", "two"):
        client.ask(id=name)
        text = ""
        while text != "ab":
            event = client.event()
            assert (event["type"], event["id"]) == ("token", name)
            text += event["text"]
    client.send(type="cancel", id="one")
    last = client.event()
    assert (last["type"], last["id"], last["finish_reason"], last["tokens_used"]) == ("done", "one", "cancelled", 2)
    until(lambda: running(served) == 1)
    client.send(type="cancel", id="two")
    assert client.event()["finish_reason"] == "cancelled"
    served.engine.reset()
    client.works()


def test_cancel_before_a_model_has_it(served: Served, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = threading.Event()

    @contextlib.asynccontextmanager
    async def lease(model: str | None, *, strict: bool, kind: Any) -> Any:
        waiting.set()
        await asyncio.Event().wait()
        yield

    with monkeypatch.context() as patched:
        patched.setattr(served.pool, "lease", lease)
        client.ask(id=1, model="tiny:1b")
        client.send(type="cancel", id=1)
        last = client.event()
        assert waiting.is_set()
    assert (last["type"], last["id"], last["finish_reason"], last["tokens_used"]) == ("done", 1, "cancelled", 0)
    assert last["model"] == "tiny:1b" and last["usage"]["total_tokens"] == 0
    client.works()


def test_cancel_what_is_not_there(served: Served, client: Client) -> None:
    client.send(type="cancel", id="x")
    assert client.event() == {"type": "error", "id": "x", "detail": "id: no request with the id 'x' is under way"}
    client.send(type="cancel")
    assert client.event() == {"type": "error", "detail": "id: is missing: which request to cancel"}
    client.works()


@pytest.mark.parametrize("manner", ["close", "abort"])
def test_a_client_that_leaves_ends_all_it_has_running(served: Served, manner: str) -> None:
    hold(served, b"a")
    with connected(served) as client:
        for index in range(3):
            client.ask(id=index)
            client.event()
        assert running(served) == 3 and served.engine.cancelled == []
        if manner == "abort":
            client.connection.socket.shutdown(2)
    until(lambda: len(served.engine.cancelled) == 3 and running(served) == 0)


# What is refused; the connection stays.


WRONG: dict[str, tuple[str | bytes, str]] = {
    "no JSON": ("{", "the body is not valid JSON"),
    "empty": ("", "the body is empty"),
    "no object": ("[1]", "the body is wrong: expected object, got array"),
    "not UTF-8": (b"\xff\xfe", "the body is not valid JSON"),
    "nested": ("[" * 20_000, "the body"),
    "no prompt": ('{"task": "chat"}', "prompt: is missing"),
    "empty prompt": ('{"task": "chat", "prompt": ""}', "prompt: is empty"),
    "no task": ('{"prompt": "x"}', "task: is missing; known: generate, refactor, debug, audit, document, chat"),
    "unknown task": ('{"prompt": "x", "task": "explain"}', "task: unknown task 'explain'; known: generate"),
    "wrong field": ('{"prompt": "x", "task": "chat", "max_tokens": "many"}', "max_tokens: expected int, got str"),
    "out of range": ('{"prompt": "x", "task": "chat", "top_p": 2}', "top_p: must be above 0 and at most 1"),
    "not streaming": ('{"prompt": "x", "task": "chat", "stream": false}', "stream: a WebSocket always streams"),
    "unknown model": ('{"prompt": "x", "task": "chat", "model": "tiny"}', "unknown model 'tiny'; did you mean tiny:1b?"),
    "unknown type": ('{"type": "hello"}', "type: unknown type 'hello'; known: request"),
    "format": ('{"prompt": "x", "task": "chat", "format": "json"}', "format: json is for debug and audit only"),
    "suffix": ('{"prompt": "x", "task": "generate", "suffix": "y"}', "suffix: model 'tiny:1b' has no tokens"),
    "id true": ('{"id": true}', "id: expected an integer of 64 bits or a text"),
    "id 1.5": ('{"id": 1.5}', "id: expected an integer of 64 bits or a text"),
    "id list": ('{"id": []}', "id: expected an integer of 64 bits or a text"),
    "id long": (json.dumps({"id": "x" * 129}), "id: expected an integer of 64 bits or a text"),
    "id huge": (json.dumps({"id": 10**400}), "id: expected an integer of 64 bits or a text"),
    "id huge cancelled": (json.dumps({"id": 2**63, "type": "cancel"}), "id: expected an integer"),
}


@pytest.mark.parametrize(("message", "detail"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_told(served: Served, client: Client, message: str | bytes, detail: str) -> None:
    client.connection.send(message)
    error = client.event()
    assert set(error) == {"type", "detail"} and error["type"] == "error" and error["detail"].startswith(detail)
    assert served.engine.submitted == []
    client.works()


@pytest.mark.parametrize("message", [{"task": "explain"}, {"type": "hello"}, {"prompt": 3}, {"top_k": "x"}])
def test_an_error_has_the_id_where_it_is_known(client: Client, message: dict[str, Any]) -> None:
    client.ask(id="mine", **message)
    assert client.event()["id"] == "mine"


def test_a_message_that_is_too_large(tmp_path: Path) -> None:
    with start_in(tmp_path)(max_body_mib=1, engine={"context": 8192}) as served, connected(served) as client:
        for size in (1 << 20, 3 << 20):
            client.ask(id=1, prompt="x" * size)
            assert client.event() == {"type": "error", "detail": "the message is larger than 1 MiB"}
        client.connection.send(iter(["x" * (1 << 19)] * 3))  # in fragments
        assert "larger" in client.event()["detail"]
        client.works()


def test_overloaded(served: Served, client: Client) -> None:
    served.engine.full = True
    client.ask(id=3)
    detail = "the server is busy: 3 requests are waiting already"
    assert client.event() == {"type": "error", "id": 3, "detail": detail, "retry_after": 7}
    served.engine.reset()
    client.works()


@pytest.mark.parametrize("error", [EngineFailure("decode failed"), ZeroDivisionError("secret")], ids=["known", "unknown"])
def test_a_failure_in_the_middle(served: Served, client: Client, error: Exception) -> None:
    served.script(b"a", error)
    client.ask(id=1)
    detail = "decode failed" if isinstance(error, EngineFailure) else "internal error; the server's log has the details"
    assert client.answer() == ("a", {"type": "error", "id": 1, "detail": detail})
    served.engine.reset()
    client.works()


def test_messages_count_as_requests_do(serve: Serve) -> None:
    with serve(rate_limit=True, free_rate="3/minute", engine={"context": 8192}) as served, connected(served) as client:
        client.ask()
        assert client.answer()[1]["type"] == "done"
        client.connection.send("what is wrong counts too")
        assert "not valid JSON" in client.event()["detail"]
        client.send(type="cancel", id=1)
        assert "no request" in client.event()["detail"]
        client.ask()
        assert client.answer()[1]["type"] == "done"
        client.ask(id="more")
        error = client.event()
        assert error["id"] == "more" and 0 < error["retry_after"] <= 60 and "rate limit" in error["detail"]
        client.send(type="cancel", id=1)
        assert "no request" in client.event()["detail"]


def test_other_paths_are_no_sockets(served: Served) -> None:
    for path in ("/api/v1/assistant/chat", "/nowhere"):
        with pytest.raises(InvalidStatus), connect(served.url.replace("http", "ws", 1) + path):
            pass


def test_each_connection_has_its_own_ids(served: Served) -> None:
    go = hold(served, b"a")
    with connected(served) as one, connected(served) as two:
        for client in (one, two):
            client.ask(id=1)
            assert client.event()["text"] == "a"
        two.send(type="cancel", id=1)
        assert two.event()["finish_reason"] == "cancelled"
        go.set()
        assert one.answer()[1]["finish_reason"] == "stop"


def test_many_connections(served: Served) -> None:
    def script(prompt: list[int], params: SamplingParams) -> Any:
        return say(f"answer {params.seed}")

    served.engine.script = script
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connected(served)) for _ in range(12)]
        for index, client in enumerate(clients):
            for number in range(4):
                client.ask(id=number, seed=index * 10 + number)
        for index, client in enumerate(clients):
            texts = dict.fromkeys(range(4), "")
            ended = 0
            while ended < 4:
                event = client.event()
                ended += event["type"] == "done"
                texts[event["id"]] += event.get("text", "")
            assert texts == {number: f"answer {index * 10 + number}" for number in range(4)}
