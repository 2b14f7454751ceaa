"""OpenAI's Responses, with the real client and by hand."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import openai
import pydantic
import pytest
from hypothesis import given

from locallab.engine.request import Constraint
from locallab.errors import EngineFailure
from locallab.keys import KeyStore
from locallab.server.dialects.responses.stream import Frame, ResponsesFormatter
from tests.support.dialect_requests import ARGUMENTS, CALL, PARAMETERS, RAW, SAID, THOUGHT, cut, cuts, named_events, news, turn
from tests.support.fake_engine import TEXT, say
from tests.support.http_server import Serve, Served
from tests.support.openapi_check import Described

TOOLS: list[Any] = [{"type": "function", "name": "weather", "description": None, "parameters": PARAMETERS, "strict": True}]


def post(served: Served, **body: Any) -> Any:
    return served.http.post("/v1/responses", json={"model": "any", "input": "hi", **body})


def prompt(served: Served, **body: Any) -> str:
    """Return the prompt of the last request."""
    response = post(served, **body)
    assert response.status_code == 200, response.text
    return served.engine.submitted[-1][0]


def test_text(thinking: Served) -> None:
    thinking.engine.cached = 4
    response = thinking.openai.responses.create(model="gpt-x", input="hi", instructions="be kind", metadata={"a": "b"})
    assert response.output_text == TEXT and response.status == "completed" and response.model == "gpt-x"
    said, params = thinking.engine.submitted[-1]
    assert said == "<s><system>be kind\n<user>hi\n<assistant>" and params.max_tokens is None
    assert response.instructions == "be kind" and response.metadata == {"a": "b"} and response.error is None
    assert response.usage is not None and response.usage.input_tokens == len(said) - 3 + 1
    assert response.usage.output_tokens == len(TEXT.encode()) and response.usage.input_tokens_details.cached_tokens == 4
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens


@pytest.mark.parametrize("path", ["/responses", "/v1/responses/", "/v1/v1/responses"])
def test_every_spelling_of_the_path(thinking: Served, path: str) -> None:
    assert thinking.http.post(path, json={"input": "hi"}).json()["object"] == "response"


def said_of(output: list[Any]) -> list[Any]:
    """Return the content of the items."""
    found: list[Any] = []
    for item in output:
        match item["type"]:
            case "message":
                found.append("".join(part["text"] for part in item["content"]))
            case "reasoning":
                found.append([part["text"] for part in item.get("content") or item["summary"]])
            case "function_call":
                found.append((item["name"], json.loads(item["arguments"])))
    return found


WHOLE = [[THOUGHT], SAID, ("weather", ARGUMENTS), ("weather", ARGUMENTS)]


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
@pytest.mark.parametrize("summary", [None, "auto"])
def test_a_stream_is_the_whole_response(thinking: Served, size: int, summary: Any) -> None:
    thinking.script(*say(RAW, size))
    asked: Any = {"model": "m", "input": "hi", "tools": TOOLS, "reasoning": {"summary": summary}}
    texts, calls = "", ""
    with thinking.openai.responses.stream(**asked) as stream:
        for event in stream:
            texts += event.delta if event.type == "response.output_text.delta" else ""
            calls += event.delta if event.type == "response.function_call_arguments.delta" else ""
        streamed = stream.get_final_response().to_dict()
    whole = thinking.openai.responses.create(**asked).to_dict()
    assert said_of(streamed["output"]) == said_of(whole["output"]) == WHOLE
    assert texts == SAID and calls == json.dumps(ARGUMENTS, ensure_ascii=False) * 2
    thought = streamed["output"][0]
    assert bool(thought["summary"]) == (summary is not None) != bool(thought.get("content"))
    assert streamed["usage"]["output_tokens"] == whole["usage"]["output_tokens"]
    reasoned = streamed["usage"]["output_tokens_details"]["reasoning_tokens"]
    assert (0 < reasoned < len(RAW.encode())) or size == 1000


PARTS = {
    "response.content_part.added": "part",
    "response.output_text.delta": "delta",
    "response.reasoning_text.delta": "delta",
    "response.reasoning_summary_text.delta": "delta",
    "response.function_call_arguments.delta": "delta",
}


def rebuilt(events: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Return the items of a stream by type and text; each must begin, grow and end in its turn."""
    found: list[tuple[str, str]] = []
    item: dict[str, Any] | None = None
    grown = ""
    for event in events[2:-1]:
        kind = event["type"]
        if kind == "response.in_progress":
            continue
        assert event["output_index"] == len(found)
        if kind == "response.output_item.added":
            assert item is None and event["item"]["status"] == "in_progress"
            item, grown = event["item"], ""
        elif kind == "response.output_item.done":
            assert item is not None and event["item"]["id"] == item["id"] and event["item"]["type"] == item["type"]
            found.append((item["type"], grown))
            assert grown in json.dumps(event["item"], ensure_ascii=False) or event["item"]["arguments"] == grown
            item = None
        else:
            assert item is not None and event["item_id"] == item["id"]
            grown += event["delta"] if kind.endswith(".delta") else ""
            if kind.endswith(("_text.done", "arguments.done")):
                assert event.get("text", event.get("arguments")) == grown
    assert item is None
    return found


@given(cuts)
def test_however_the_text_is_cut_the_stream_says_the_same(places: list[int]) -> None:
    chunks = ResponsesFormatter(turn(), Frame.make(previous_response_id=None))
    events = named_events(
        (b"".join(chunks.encode(items) for items in news(cut(RAW, places))) + chunks.ping() + chunks.end()).decode()
    )
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    arguments = json.dumps(ARGUMENTS, ensure_ascii=False)
    calls = [("function_call", arguments)] * 2
    assert rebuilt(events) == [("reasoning", THOUGHT), ("message", SAID), *calls]
    last = events[-1]
    assert (
        last["type"] == "response.completed"
        and said_of(last["response"]["output"]) == WHOLE
        and chunks.made == last["response"]
    )
    assert {event["response"]["id"] for event in events if "response" in event} == {last["response"]["id"]}


SCORED: Any = ["message.output_text.logprobs"]


def tokens_of(logprobs: Any) -> bytes:
    """Join the tokens' names: the fake model's tokens are bytes."""
    return b"".join(each["token"].encode().decode("unicode_escape").encode("latin-1") for each in logprobs)


def the_text(body: Any) -> Any:
    """Return the one text of a response."""
    [[part]] = [item["content"] for item in body["output"] if item["type"] == "message"]
    return part


def test_logprobs(thinking: Served) -> None:
    response = thinking.openai.responses.create(model="m", input="hi", include=SCORED, top_logprobs=1)
    [item] = response.output
    assert item.type == "message" and item.content[0].type == "output_text" and response.top_logprobs == 1
    logprobs = item.content[0].logprobs
    assert logprobs is not None and bytes(byte for each in logprobs for byte in each.bytes).decode() == TEXT
    top = [{"token": "a", "logprob": 0.0, "bytes": [97]}]
    assert logprobs[0].to_dict() == {"token": "H", "logprob": -0.72, "bytes": [72], "top_logprobs": top}


@pytest.mark.parametrize(
    ("wish", "count"),
    [
        ({"include": SCORED}, 0),
        ({"top_logprobs": 3}, 3),
        ({"include": SCORED, "top_logprobs": 0}, 0),
        ({"include": ["reasoning.encrypted_content", *SCORED], "top_logprobs": 2}, 2),
        ({}, None),
        ({"top_logprobs": 0, "include": ["reasoning.encrypted_content"]}, None),
    ],
)
def test_how_logprobs_are_asked_for(thinking: Served, wish: Any, count: int | None) -> None:
    body = post(thinking, **wish).json()
    assert thinking.engine.submitted[-1][1].logprobs == count and body["top_logprobs"] == (count or 0)
    logprobs = the_text(body)["logprobs"]
    assert (count is None and logprobs == []) or {len(each["top_logprobs"]) for each in logprobs} == {count}


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_only_the_tokens_of_the_text_are_told(thinking: Served, size: int) -> None:
    thinking.script(*say(RAW, size))
    asked: Any = {"model": "m", "input": "hi", "tools": TOOLS, "include": SCORED, "top_logprobs": 2}
    deltas, done = [], []
    with thinking.openai.responses.stream(**asked) as stream:
        for event in stream:
            if event.type == "response.output_text.delta":
                deltas += [each.to_dict() for each in event.logprobs]
            elif event.type == "response.output_text.done":
                done += [each.to_dict() for each in event.logprobs]
        streamed = stream.get_final_response().to_dict()
    assert said_of(streamed["output"]) == WHOLE
    part = the_text(streamed)
    assert tokens_of(deltas) == tokens_of(part["logprobs"]) == SAID.encode() and deltas == done
    assert set(deltas[0]) == {"token", "logprob", "top_logprobs"} and set(deltas[0]["top_logprobs"][1]) == {"token", "logprob"}
    assert the_text(thinking.openai.responses.create(**asked).to_dict())["logprobs"] == part["logprobs"]
    kept = thinking.http.get(f"/v1/responses/{streamed['id']}").json()
    assert the_text(kept)["logprobs"] == part["logprobs"]


def test_tokens_come_with_the_text_that_they_bring(thinking: Served) -> None:
    thinking.script(b"<think>\nx", b"y</think>", b"\n\n", b"abc", b"x", b"yz", *say("ü", 1))
    events = named_events(post(thinking, stream=True, include=SCORED, stop=["xyy"]).text)
    deltas = [(each["delta"], tokens_of(each["logprobs"])) for each in events if each["type"] == "response.output_text.delta"]
    assert deltas == [("abc", b"abc"), ("xyz", b"xyz"), ("ü", "ü".encode())]


def test_an_answer_of_a_call_has_no_logprobs(thinking: Served) -> None:
    thinking.script(*say(CALL))
    response = post(thinking, tools=TOOLS, include=SCORED, stream=True)
    [item] = named_events(response.text)[-1]["response"]["output"]
    assert item["type"] == "function_call" and '"logprobs":[{' not in response.text


def test_a_conversation_goes_on_from_a_response_with_logprobs(thinking: Served) -> None:
    thinking.script(*say("yes"))
    first = post(thinking, include=SCORED).json()
    assert prompt(thinking, input="so?", previous_response_id=first["id"]).endswith("<assistant>yes\n<user>so?\n<assistant>")
    again = [*first["output"], {"role": "user", "content": "so?"}]
    assert prompt(thinking, input=again, include=SCORED).endswith("<assistant>yes\n<user>so?\n<assistant>")


def test_responses_with_logprobs_are_as_described(thinking: Served) -> None:
    described = Described(thinking.http.get("/openapi.json").json())
    described.check_response(described.operation("post", "/v1/responses"), post(thinking, include=SCORED, top_logprobs=2))


def test_an_answer_of_nothing_is_an_empty_message(thinking: Served) -> None:
    thinking.script(b"")
    assert said_of(post(thinking).json()["output"]) == [""]
    assert rebuilt(named_events(post(thinking, stream=True).text)) == [("message", "")]


def test_a_conversation_with_calls_goes_on_from_a_response(thinking: Served) -> None:
    client = thinking.openai.responses
    thinking.script(*say(f"<think>{THOUGHT}</think>{CALL}"))
    first = client.create(model="m", input="hi", instructions="be kind", tools=TOOLS)
    call = first.output[-1]
    assert call.type == "function_call"
    thinking.script(*say("rain"))
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": [{"type": "input_text", "text": "wet"}]}
    second = client.create(model="m", input=[result], previous_response_id=first.id)
    arguments = json.dumps(ARGUMENTS, ensure_ascii=False)
    expected = f"<s><user>hi\n<assistant>({THOUGHT})[weather {arguments} {call.call_id}]\n<tool>wet[{call.call_id}]\n"
    assert thinking.engine.submitted[-1][0] == f"{expected}<assistant>"  # instructions are those of each request
    assert second.previous_response_id == first.id
    client.create(model="m", input="and?", previous_response_id=second.id)
    assert thinking.engine.submitted[-1][0] == f"{expected}<assistant>rain\n<user>and?\n<assistant>"


def test_the_same_conversation_with_all_its_items(thinking: Served) -> None:
    items = [
        {"role": "developer", "content": "be kind"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": None},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look.", "annotations": []}]},
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"days": 1}', "status": "completed"},
        {"type": "custom_tool_call", "call_id": "c2", "name": "shell", "input": "ls"},
        {"type": "function_call_output", "call_id": "c1", "output": "wet"},
        {"type": "custom_tool_call_output", "call_id": "c2", "output": "a b"},
        {"type": "web_search_call", "id": "ws_1", "status": "completed"},
    ]
    response = post(thinking, input=items, tools=TOOLS)
    said = thinking.engine.submitted[-1][0]
    assert said.startswith(
        '<s><system>be kind\n<user>hi\n<assistant>I look.[weather {"days": 1} c1][shell {"input": "ls"} c2]\n'
        "<tool>wet[c1]\n<tool>a b[c2]\n<assistant>[web_search_call]\n<can>"
    )
    assert response.headers["x-locallab-notes"] == "input[8]: an item of type 'web_search_call' is given as text"


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ({"content": [{"type": "reasoning_text", "text": "hm"}], "summary": []}, "(hm)"),
        ({"summary": [{"type": "summary_text", "text": "in short"}]}, "(in short)"),
        ({"summary": [], "encrypted_content": "x"}, ""),
        ({"content": None}, ""),
        ({"content": "hm"}, "(hm)"),
        ({"content": 5}, ""),
    ],
    ids=["content", "summary", "encrypted", "null", "bare", "odd"],
)
def test_what_was_thought_belongs_to_what_comes_next(thinking: Served, item: Any, said: str) -> None:
    thought = {"type": "reasoning", "id": "rs_1", **item}
    call = {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"}
    result = {"type": "function_call_output", "call_id": "c1", "output": "wet"}
    answer = {"type": "message", "role": "assistant", "content": "yes"}
    items = [{"role": "user", "content": "hi"}, thought, call, result, thought, answer, {"role": "user", "content": "so?"}]
    expected = f"<s><user>hi\n<assistant>{said}[weather {{}} c1]\n<tool>wet[c1]\n<assistant>{said}yes\n<user>so?\n"
    assert prompt(thinking, input=items).startswith(expected)


def test_items_by_their_names(thinking: Served) -> None:
    thinking.script(*say("yes"))
    first = post(thinking).json()
    references = [{"type": "item_reference", "id": first["output"][0]["id"]}, {"id": first["output"][0]["id"]}]
    assert prompt(thinking, input=[*references, {"role": "user", "content": "so?"}]).startswith(
        "<s><assistant>yes\n<assistant>yes\n<user>so?\n"
    )
    wrong = post(thinking, input=[{"type": "item_reference", "id": "msg_x"}])
    assert wrong.status_code == 400 and wrong.json()["error"]["param"] == "input[0].id"


def test_what_codex_sends(thinking: Served) -> None:
    body = {
        "model": "gpt-codex",
        "instructions": "You are a coding agent.",
        "input": [
            {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "<permissions>"}]},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        ],
        "tools": [
            *TOOLS,
            {
                "type": "custom",
                "name": "apply_patch",
                "format": {"type": "grammar", "syntax": "lark", "definition": "start: /x+/"},
            },
            {"type": "web_search", "external_web_access": False},
            {"type": "local_shell"},
            {"type": "namespace", "name": "mcp", "tools": []},
            {"type": "image_generation", "output_format": "png"},
        ],
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "reasoning": {"effort": "xhigh", "summary": "auto"},
        "store": False,
        "stream": True,
        "include": ["reasoning.encrypted_content"],
        "service_tier": None,
        "prompt_cache_key": "x",
        "text": {"verbosity": "low"},
        "client_metadata": {"a": "b"},
    }
    thinking.script(*say(f"<think>{THOUGHT}</think>{CALL}"))
    response = thinking.http.post("/v1/responses", json=body)
    last = named_events(response.text)[-1]
    assert last["type"] == "response.completed" and last["response"]["id"] and last["response"]["usage"]["total_tokens"] > 0
    assert [item["type"] for item in last["response"]["output"]] == ["reasoning", "function_call"]
    assert last["response"]["output"][0]["summary"] == [{"type": "summary_text", "text": THOUGHT}]
    notes = response.headers["x-locallab-notes"]
    assert all(f"a tool of type '{kind}' is left out" in notes for kind in ("web_search", "local_shell", "image_generation"))
    assert "<effort>high\n" in thinking.engine.submitted[-1][0]
    assert thinking.http.get(f"/v1/responses/{last['response']['id']}").status_code == 404  # nothing was to be kept


@pytest.mark.parametrize("empty", [[], "", None])
def test_a_probe_that_asks_nothing(thinking: Served, empty: Any) -> None:
    response = post(thinking, input=empty, max_output_tokens=1).json()
    assert response["status"] == "incomplete" and response["usage"]["output_tokens"] == 1


def test_a_limit(thinking: Served) -> None:
    response = post(thinking, max_output_tokens=5).json()
    assert response["status"] == "incomplete" and response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert response["output"][0]["status"] == "incomplete" and said_of(response["output"]) == [TEXT[:5]]
    last = named_events(post(thinking, max_output_tokens=5, stream=True).text)[-1]
    assert last["type"] == "response.incomplete" and last["response"]["output"][0]["status"] == "incomplete"


def test_effort_none_is_no_thinking(thinking: Served) -> None:
    assert prompt(thinking, reasoning={"effort": "none"}).endswith("<think></think>")
    assert prompt(thinking, reasoning={"effort": "minimal"}).endswith("<effort>low\n<assistant>")
    assert prompt(thinking, reasoning=None).endswith("hi\n<assistant>")


def test_formats(served: Served) -> None:
    class Place(pydantic.BaseModel):
        name: str

    served.script(*say('{"name": "Zürich"}'))
    parsed = served.openai.responses.parse(model="m", input="hi", text_format=Place)
    assert parsed.output_parsed == Place(name="Zürich")
    constraint = served.engine.submitted[-1][1].constraint
    assert constraint is not None and constraint.kind == "json_schema"
    assert json.loads(constraint.source)["properties"]["name"]["type"] == "string"
    prompt(served, text={"format": {"type": "json_object"}})
    assert served.engine.submitted[-1][1].constraint == Constraint("json_object", "", "text.format")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "weather"}])
def test_a_choice_of_tools_is_enforced(thinking: Served, choice: Any) -> None:
    prompt(thinking, tools=TOOLS, tool_choice=choice)
    constraint = thinking.engine.submitted[-1][1].constraint
    assert constraint is not None and constraint.kind == "lark" and "weather" in constraint.source
    assert "<can>" not in prompt(thinking, tools=TOOLS, tool_choice="none")


def test_a_response_is_kept_until_it_is_deleted(thinking: Served) -> None:
    client = thinking.openai.responses
    with client.stream(model="m", input="hi") as stream:
        made = stream.get_final_response()
    assert client.retrieve(made.id).output_text == TEXT
    assert thinking.http.delete(f"/v1/responses/{made.id}").json() == {"id": made.id, "object": "response", "deleted": True}
    with pytest.raises(openai.NotFoundError, match="not found"):
        client.retrieve(made.id)
    with pytest.raises(openai.NotFoundError):
        client.delete(made.id)
    with pytest.raises(openai.BadRequestError) as error:
        client.create(model="m", input="hi", previous_response_id=made.id)
    assert error.value.param == "previous_response_id" and error.value.code == "previous_response_not_found"
    assert thinking.http.get(f"/v1/responses/{made.id}?stream=true").status_code == 400


def test_a_response_is_found_by_the_key_that_made_it_only(serve: Serve, tmp_path: Path) -> None:
    with serve(api_key="one") as served:
        _, other = KeyStore(tmp_path / "keys.json").create("bob", "free")
        made = served.http.post("/v1/responses", json={"input": "hi"}, headers={"x-api-key": "one"}).json()
        path = f"/v1/responses/{made['id']}"
        assert served.http.get(path, headers={"x-api-key": other}).status_code == 404
        assert served.http.delete(path, headers={"x-api-key": other}).status_code == 404
        wanted = {"input": "so?", "previous_response_id": made["id"]}
        assert served.http.post("/v1/responses", json=wanted, headers={"x-api-key": other}).status_code == 400
        assert served.http.get(path, headers={"x-api-key": "one"}).json() == made


def test_truncation_leaves_out_the_oldest_turns(thinking: Served) -> None:
    turns: list[Any] = []
    for index in range(20):
        turns += [{"role": "user", "content": f"{index}:" + "x" * 500}, {"role": "assistant", "content": "yes"}]
    items = [{"role": "system", "content": "be kind"}, *turns, {"role": "user", "content": "so?"}]
    refused = post(thinking, input=items)
    assert refused.status_code == 400 and refused.json()["error"]["code"] == "context_length_exceeded"
    response = post(thinking, input=items, truncation="auto")
    said = thinking.engine.submitted[-1][0]
    assert said.startswith("<s><system>be kind\n<user>13:xxx") and said.endswith("<user>so?\n<assistant>")
    assert response.headers["x-locallab-notes"] == (
        "input: the oldest 26 messages are left out, for truncation is auto and they do not fit"
    )
    assert response.json()["truncation"] == "auto"
    alone = post(thinking, input="x" * 5000, truncation="auto")
    assert alone.status_code == 400 and alone.json()["error"]["code"] == "context_length_exceeded"


def test_a_prompt_that_is_too_long(thinking: Served) -> None:
    response = post(thinking, input="x" * 5000)
    error = response.json()["error"]
    assert response.status_code == 400 and error["code"] == "context_length_exceeded" and error["param"] == "input"
    assert error["n_ctx"] == 4096 and error["n_prompt_tokens"] > 5000
    streamed = post(thinking, input="x" * 5000, stream=True)
    assert streamed.headers["content-type"].startswith("text/event-stream")
    *_, failed = named_events(streamed.text)
    assert failed["type"] == "response.failed" and failed["response"]["status"] == "failed"
    assert failed["response"]["error"] == {"code": "context_length_exceeded", "message": error["message"]}


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "background": ({"background": True}, "background"),
    "conversation": ({"conversation": "conv_1"}, "conversation"),
    "prompt": ({"prompt": {"id": "p"}}, "prompt"),
    "too many logprobs": ({"top_logprobs": 21}, "top_logprobs"),
    "too few logprobs": ({"include": ["message.output_text.logprobs"], "top_logprobs": -1}, "top_logprobs"),
    "input": ({"input": 5}, "input"),
    "item": ({"input": ["hi"]}, "input[0]"),
    "role": ({"input": [{"role": "user", "content": "hi"}, {"role": "king", "content": "hi"}]}, "input[1].role"),
    "image": ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input[0].content"),
    "text": ({"text": "json"}, "text"),
    "format": ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
    "schema": ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
    "reasoning": ({"reasoning": "high"}, "reasoning"),
    "effort": ({"reasoning": {"effort": 5}}, "reasoning.effort"),
    "choice": ({"tool_choice": "required"}, "tool_choice"),
    "truncation": ({"truncation": "some"}, "truncation"),
    "limit": ({"max_output_tokens": -5}, "max_output_tokens"),
}


@pytest.mark.parametrize(("body", "field"), WRONG.values(), ids=WRONG)
def test_a_wrong_request(thinking: Served, body: dict[str, Any], field: str) -> None:
    response = post(thinking, **body)
    error = response.json()["error"]
    assert response.status_code == 400 and error["param"] == field and error["type"] == "invalid_request_error", error
    assert thinking.engine.submitted == []


def test_a_failure_in_mid_stream(thinking: Served) -> None:
    go = threading.Event()
    thinking.script(*say("<think></think>a"), go, EngineFailure("decode failed"))
    events = []
    for event in thinking.openai.responses.create(model="m", input="hi", stream=True):
        events.append(event)
        go.set()
    assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
    last = events[-1]
    assert last.type == "response.failed" and last.response.status == "failed"
    assert last.response.error is not None and last.response.error.message == "decode failed"
    assert last.response.error.code == "server_error"


def test_the_tokens_of_a_conversation_are_counted(served: Served) -> None:
    first = served.http.post("/v1/responses", json={"input": "hi", "instructions": "Be kind."}).json()
    for body in ({"input": "hi", "instructions": "Be kind."}, {"input": "more", "previous_response_id": first["id"]}):
        count = served.http.post("/v1/responses/input_tokens", json=body)
        answered = served.http.post("/v1/responses", json=body).json()
        assert count.json() == {"object": "response.input_tokens", "input_tokens": answered["usage"]["input_tokens"]}
    client = served.openai.responses.input_tokens
    assert client.count(model="m", input="hi", instructions="Be kind.").input_tokens == first["usage"]["input_tokens"]
    wrong = served.http.post("/v1/responses/input_tokens", json={"input": 3}).json()["error"]
    assert wrong["param"] == "input"
