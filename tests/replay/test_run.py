"""The replay of clients that cannot run here to a server with a scripted engine, and the findings of its checks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from locallab import cli
from locallab.engine.request import SamplingParams
from locallab.replay import EXCHANGES, Exchange, Outcome, message, replay
from locallab.replay.checks import service
from locallab.replay.checks.anthropic import message_stream
from locallab.replay.checks.ollama import ollama_stream
from locallab.replay.checks.openai import stream, whole
from locallab.replay.checks.responses import response_stream
from locallab.replay.exchange import Check, Reply, Unmet
from tests.support.fake_engine import FIM, Step, say
from tests.support.http_server import Serve, Served, start_in

KEY = "ll-for-the-tests"
CALL = '<tool_call>\n{"name": "read_file", "arguments": {"path": "README.md"}}\n</tool_call>'
PLACE = '{"city": "Oslo", "coastal": true}'


def script(prompt: list[int], params: SamplingParams) -> list[Step]:
    """Script the answer of a model that must call the tool, must return JSON, or is free."""
    kind = params.constraint.kind if params.constraint else None
    return say({"lark": CALL, "json_schema": PLACE}.get(str(kind), "Hello, wörld!"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    engine = {"context": 8192, "script": script, "fim": FIM}
    with start_in(tmp_path_factory.mktemp("shapes"))(engine=engine, api_key=KEY) as served:
        yield served


@pytest.mark.parametrize("shape", EXCHANGES, ids=lambda shape: f"{shape.client} {shape.doing}")
def test_shape(server: Served, shape: Exchange) -> None:
    with httpx.Client(base_url=server.url) as http:
        [outcome] = replay(http, KEY, [shape])
    assert outcome == Outcome(shape.client, shape.doing, "ok")


def test_every_client_of_the_table_is_there() -> None:
    cannot_run = {"Cline", "Roo", "Continue", "Zed", "aider", "Open WebUI", "Cursor", "Codex CLI", "Claude Code", "opencode"}
    assert cannot_run <= {shape.client for shape in EXCHANGES}
    assert len({(shape.client, shape.doing) for shape in EXCHANGES}) == len(EXCHANGES)


def test_doctor(server: Served) -> None:
    """The command line succeeds with the key, and only with it."""
    done = CliRunner().invoke(cli.main, ["doctor", "--clients", "--url", server.url, "--api-key", KEY, "--json"])
    found = json.loads(done.stdout)
    assert done.exit_code == 0, [each for each in found if each["status"] == "fail"]
    assert [(each["client"], each["doing"]) for each in found] == [(shape.client, shape.doing) for shape in EXCHANGES]
    assert {each["status"] for each in found} == {"ok"}
    keyless = CliRunner().invoke(cli.main, ["doctor", "--clients", "--url", server.url])
    assert keyless.exit_code == 1
    assert "fail  Zed            streams with tools\n" in keyless.stdout
    assert "→ status 401, not 200: " in keyless.stdout
    assert "skip  Claude Code    sends a wrong key\n" in keyless.stdout
    assert KEY not in keyless.stdout + done.stdout


def test_doctor_where_nobody_answers(unused_port: int) -> None:
    done = CliRunner().invoke(cli.main, ["doctor", "--clients", "--url", f"127.0.0.1:{unused_port}"])
    assert (done.exit_code, "no server answers" in done.stderr) == (1, True)


@pytest.mark.parametrize("arguments", [["--clients", "--port", "1"], ["--url", "x"], ["--api-key", "x"]])
def test_options_that_do_not_go_together(arguments: list[str]) -> None:
    done = CliRunner().invoke(cli.main, ["doctor", *arguments])
    assert (done.exit_code, "--clients" in done.stderr) == (2, True)


def test_a_server_that_tells_no_context_is_not_asked_for_overflows(serve: Serve) -> None:
    with serve(load=None, on_demand="refuse") as served:  # which lists no models
        found = list(replay(served.http, None, [shape for shape in EXCHANGES if shape.needs_context]))
    assert found and {outcome.status for outcome in found} == {"skip"}


def answer(text: str, status: int = 200, kind: str = "text/event-stream") -> Reply:
    return Reply(status, {"content-type": kind}, text)


def events(*bodies: Any, end: str = "data: [DONE]\n\n") -> str:
    return "".join(f"data: {json.dumps(body)}\n\n" for body in bodies) + end


def chunk(delta: Any, finish_reason: str | None = None, **more: Any) -> dict[str, Any]:
    choices = [{"index": 0, "delta": delta, "finish_reason": finish_reason}]
    return {"id": "x", "model": "m", "choices": choices, **more}


def called(index: int, arguments: str, **more: Any) -> dict[str, Any]:
    name = {"name": more.pop("name")} if "name" in more else {}
    return {"tool_calls": [{"index": index, "function": {**name, "arguments": arguments}, **more}]}


FIRST, TEXT, LAST = chunk({"role": "assistant", "content": ""}), chunk({"content": "hi"}), chunk({}, "stop")
USAGE = {"model": "m", "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}}
OPENED = chunk(called(0, "", id="c", name="f"))
ENDED = chunk({}, "tool_calls")

STREAMS: dict[str, tuple[Check, str, str | None]] = {
    "plain": (stream(), events(FIRST, TEXT, LAST), None),
    "with usage": (stream(usage=True), events(FIRST, TEXT, LAST, USAGE), None),
    "a call": (stream(message.known_calls("f")), events(FIRST, OPENED, chunk(called(0, "{}")), ENDED), None),
    "CRLF": (stream(), events(FIRST, TEXT, LAST).replace("\n", "\r\n"), None),
    "no usage": (stream(usage=True), events(FIRST, TEXT, LAST), "the last chunk is not the usage"),
    "usage unasked": (stream(), events(FIRST, {**LAST, "usage": USAGE["usage"]}), "a usage that was not requested"),
    "usage with a choice": (stream(usage=True), events(FIRST, {**LAST, "usage": USAGE["usage"]}), "empty list of choices"),
    "no choices": (stream(), events(FIRST, {"model": "m"}, LAST), "no choices.0.index"),
    "no role": (stream(), events(TEXT, LAST), "chunk 0 has the role None"),
    "another role": (stream(), events(FIRST, chunk({"role": "tool"}), LAST), "chunk 1 has the role 'tool'"),
    "no end": (stream(), events(FIRST, TEXT), "no chunk has a finish reason"),
    "more after the end": (stream(), events(FIRST, LAST, TEXT), "a chunk comes after the finish reason"),
    "unknown reason": (stream(), events(FIRST, chunk({}, "eos")), "the finish reason 'eos'"),
    "no [DONE]": (stream(), events(FIRST, LAST, end=""), "not [DONE]"),
    "a comment": (stream(), ": ping\n\n" + events(FIRST, LAST), "no plain data event: : ping"),
    "an id": (stream(), "id: 1\n" + events(FIRST, LAST), "no plain data event: id: 1"),
    "cut off": (stream(), events(FIRST, LAST)[:-1], "in the middle of an event"),
    "empty": (stream(), "", "the stream is empty"),
    "name twice": (
        stream(),
        events(FIRST, OPENED, chunk(called(0, "{}", name="f")), ENDED),
        "the id or name of a call comes twice",
    ),
    "no id": (stream(), events(FIRST, chunk(called(0, "", name="f")), ENDED), "no id"),
    "arguments as an object": (stream(), events(FIRST, OPENED, chunk(called(0, {})), ENDED), "function.arguments is {}"),  # type: ignore[arg-type]
    "index skipped": (stream(), events(FIRST, chunk(called(1, "", id="c", name="f")), ENDED), "the index of call 0 is 1"),
    "arguments no JSON": (stream(message.known_calls("f")), events(FIRST, OPENED, ENDED), "not JSON"),
    "another tool": (stream(message.known_calls("g")), events(FIRST, OPENED, ENDED), "called 'f', which is not a tool"),
    "calls that ended as text": (
        stream(message.known_calls("f")),
        events(FIRST, OPENED, chunk(called(0, "{}")), LAST),
        "calls, but finish reason 'stop'",
    ),
    "no call": (stream(message.calls("f")), events(FIRST, TEXT, LAST), "finish reason 'stop', not 'tool_calls'"),
    "two calls": (
        stream(message.one_call_at_most),
        events(FIRST, OPENED, chunk(called(1, "{}", id="d", name="f")), ENDED),
        "2 calls at once",
    ),
    "calls forbidden": (stream(message.no_calls), events(FIRST, OPENED, ENDED), "calls, which the request forbids"),
}


@pytest.mark.parametrize(("check", "text", "reason"), STREAMS.values(), ids=STREAMS)
def test_checks_of_streams(check: Check, text: str, reason: str | None) -> None:
    verdict(check, answer(text), reason)


def completion(message: Any, finish_reason: str = "stop", **more: Any) -> Reply:
    usage = USAGE["usage"]
    choices = [{"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish_reason}]
    return answer(json.dumps({"model": "m", "choices": choices, "usage": usage, **more}), kind="application/json")


def a_call(arguments: str, **more: Any) -> dict[str, Any]:
    return {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}, **more}


def with_call(arguments: str, **more: Any) -> Reply:
    return completion({"content": None, "tool_calls": [a_call(arguments, **more)]}, "tool_calls")


CARD = {"id": "m", "object": "model", "created": 1, "owned_by": "x"}
ODD_USAGE = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 4}

ANSWERS: dict[str, tuple[Check, Reply, str | None]] = {
    "plain": (whole(message.is_model("m"), message.answers(1)), completion({"content": "hi"}), None),
    "a call": (whole(message.calls("f", a=("x",))), with_call('{"a": "x"}'), None),
    "JSON": (whole(message.says_json(a=int)), completion({"content": '{"a": 1}'}), None),
    "an error": (whole(), answer("no", 500), "status 500, not 200: no"),
    "no JSON": (whole(), answer("no"), "not JSON: no"),
    "no content": (whole(), completion({}), "no content"),
    "no usage": (whole(), completion({"content": ""}, usage=None), "usage is null, not an object"),
    "a fraction": (
        whole(),
        completion({"content": ""}, usage={**ODD_USAGE, "total_tokens": 3.0}),
        "total_tokens is 3.0, not a whole number",
    ),
    "a wrong sum": (whole(), completion({"content": ""}, usage=ODD_USAGE), "does not add up"),
    "arguments forbidden": (whole(message.calls("f", a=("x",))), with_call('{"a": "y"}'), "that the tool's schema forbids"),
    "arguments too many": (whole(message.calls("f")), with_call('{"a": "y"}'), "that the tool's schema forbids"),
    "a call without type": (whole(), with_call("{}", type=None), "type is null, not a string"),
    "another model": (whole(message.is_model("n")), completion({"content": ""}), "model 'm', not the requested 'n'"),
    "one answer": (whole(message.answers(2)), completion({"content": ""}), "1 answers, not 2"),
    "no logprobs": (whole(message.has_logprobs), completion({"content": ""}), "no logprobs"),
    "JSON of another kind": (whole(message.says_json(a=int)), completion({"content": '{"a": true}'}), "its schema forbids"),
    "JSON with more": (whole(message.says_json(a=int)), completion({"content": '{"a": 1, "b": 1}'}), "its schema forbids"),
    "no object": (whole(message.says_json(a=int)), completion({"content": "[1]"}), "not an object: [1]"),
    "detail": (service.refused(400), answer('{"detail": "x"}', 400), "no error.message"),
    "422": (service.refused(400), answer("{}", 422), "status 422, not 400"),
    "another code": (
        service.refused(400, "c"),
        answer('{"error": {"message": "m", "type": "t", "code": null, "param": null}}', 400),
        "error.code is None",
    ),
    "an overflow in other words": (
        service.too_long,
        answer('{"error": {"message": "m", "type": "t", "param": null, "code": "context_length_exceeded"}}', 400),
        "the message does not say",
    ),
    "OpenAI's error for Anthropic's": (service.anthropic_refused(400), answer('{"error": {"message": "m"}}', 400), "no type"),
    "OpenAI's error for Ollama's": (service.ollama_refused(400), answer('{"error": {}}', 400), "error is {}, not a string"),
    "a list without models": (service.models, answer('{"data": [], "models": []}'), "the list of models is empty"),
    "no context": (
        service.context_reported,
        answer(json.dumps({"data": [CARD], "models": [CARD]})),
        "no data.0.meta.n_ctx",
    ),
    "llama.cpp's pieces": (
        service.llama_stream,
        answer(events({"content": "a", "stop": False}, {"content": "", "stop": True}, end="")),
        None,
    ),
    "pieces without an end": (
        service.llama_stream,
        answer(events({"content": "a", "stop": False}, end="")),
        "not the last piece alone has stop",
    ),
    "no tokens": (service.input_tokens, answer('{"input_tokens": 0}'), "no tokens were counted"),
    "no origin": (service.granted([]), Reply(204, {}, ""), "without Access-Control-Allow-Origin"),
    "no header": (service.granted(["x-a"]), Reply(204, {"access-control-allow-origin": "*"}, ""), "lacks x-a"),
    "credentials": (
        service.granted([]),
        Reply(204, {"access-control-allow-origin": "*", "access-control-allow-credentials": "true"}, ""),
        "credentials for every origin",
    ),
}


@pytest.mark.parametrize(("check", "reply", "reason"), ANSWERS.values(), ids=ANSWERS)
def test_checks_of_answers(check: Check, reply: Reply, reason: str | None) -> None:
    verdict(check, reply, reason)


def named(*bodies: dict[str, Any]) -> str:
    return "".join(f"event: {body['type']}\ndata: {json.dumps(body)}\n\n" for body in bodies)


START = {
    "type": "message_start",
    "message": {"id": "m", "role": "assistant", "model": "m", "content": [], "usage": {"input_tokens": 1}},
}
OPEN = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
GROW = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hi"}}
CLOSE = {"type": "content_block_stop", "index": 0}
STOP = [
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 1}},
    {"type": "message_stop"},
]
MESSAGES: dict[str, tuple[str, str | None]] = {
    "plain": (named(START, OPEN, {"type": "ping"}, GROW, CLOSE, *STOP), None),
    "no start": (named(OPEN, GROW, CLOSE, *STOP), "the first event is content_block_start"),
    "no stop": (named(START, OPEN, GROW, CLOSE, STOP[0]), "the end is not message_delta, message_stop"),
    "a block that is not open": (named(START, GROW, CLOSE, *STOP), "content_block_delta comes where a block has ended"),
    "a block in another": (named(START, OPEN, OPEN, CLOSE, *STOP), "content_block_start comes where a block is open"),
    "a wrong index": (named(START, {**OPEN, "index": 1}, *STOP), "the index of block 0 is 1"),
    "no names": (events(START, OPEN, GROW, CLOSE, *STOP, end=""), "no event of a name and data"),
    "another name": (named(START).replace("event: message_start", "event: start"), "has the type message_start"),
    "OpenAI's reason": (
        named(START, {**STOP[0], "delta": {"stop_reason": "stop"}}, STOP[1]),
        "the stop reason 'stop' is none of",
    ),
}


@pytest.mark.parametrize(("text", "reason"), MESSAGES.values(), ids=MESSAGES)
def test_checks_of_messages(text: str, reason: str | None) -> None:
    verdict(message_stream(), answer(text), reason)


ITEM = {"type": "message", "content": [{"type": "output_text", "text": "hi"}]}
CREATED = {"type": "response.created", "response": {"id": "r"}}
DONE = {"type": "response.output_item.done", "item": ITEM}
FIGURES = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}
WHOLE = {"id": "r", "model": "m", "status": "completed", "output": [ITEM], "usage": FIGURES}
RESPONSES: dict[str, tuple[str, str | None]] = {
    "plain": (named(CREATED, DONE, {"type": "response.completed", "response": WHOLE}), None),
    "no beginning": (named(DONE, {"type": "response.completed", "response": WHOLE}), "the first event is"),
    "no end": (named(CREATED, DONE), "the last event is response.output_item.done"),
    "another id": (named(CREATED, {"type": "response.completed", "response": {**WHOLE, "id": "s"}}), "another id"),
    "items missing": (named(CREATED, {"type": "response.completed", "response": WHOLE}), "are not those of the response"),
    "no usage": (named(CREATED, DONE, {"type": "response.completed", "response": {**WHOLE, "usage": None}}), "no usage."),
}


@pytest.mark.parametrize(("text", "reason"), RESPONSES.values(), ids=RESPONSES)
def test_checks_of_responses(text: str, reason: str | None) -> None:
    verdict(response_stream(), answer(text), reason)


LINE = {"model": "m", "created_at": "now", "message": {"role": "assistant", "content": "hi"}, "done": False}
FINAL = {**LINE, "done": True, "done_reason": "stop", "prompt_eval_count": 1, "eval_count": 1, "total_duration": 1}
LINES: dict[str, tuple[list[Any], str, str | None]] = {
    "plain": ([LINE, FINAL], "application/x-ndjson", None),
    "as events": ([LINE, FINAL], "text/event-stream", "content type 'text/event-stream'"),
    "no end": ([LINE], "application/x-ndjson", "not the last line alone is done"),
    "two ends": ([FINAL, FINAL], "application/x-ndjson", "not the last line alone is done"),
    "no count": ([{**FINAL, "eval_count": None}], "application/x-ndjson", "eval_count is null"),
}


@pytest.mark.parametrize(("lines", "kind", "reason"), LINES.values(), ids=LINES)
def test_checks_of_lines(lines: list[Any], kind: str, reason: str | None) -> None:
    verdict(ollama_stream(), answer("".join(f"{json.dumps(line)}\n" for line in lines), kind=kind), reason)


def verdict(check: Check, reply: Reply, reason: str | None) -> None:
    """Assert that the check accepts the answer, or rejects it with `reason`."""
    if reason is None:
        check(reply)
        return
    with pytest.raises(Unmet) as unmet:
        check(reply)
    assert reason in str(unmet.value)
