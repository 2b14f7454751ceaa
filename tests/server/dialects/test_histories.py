"""No history is a dead end: whatever stands in it, a client that asks in plain text gets an answer, in every dialect."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.http_server import Served

PIXEL = "iVBORw0KGgo="
IMAGES: list[Any] = [
    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}},
    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}},
    {"type": "input_image", "image_url": f"data:image/png;base64,{PIXEL}"},
]
ODD: list[Any] = [None, "bare", 5, ["x"], {}, {"type": None}, {"type": "text"}, {"type": "text", "text": 5}, {"type": [1]}]
BLOCKS: list[Any] = [
    *IMAGES,
    *ODD,
    {"type": "text", "text": "half \ud83d"},
    {"type": "input_text", "text": "a"},
    {"type": "output_text", "text": "a"},
    {"type": "refusal", "refusal": "no"},
    {"type": "thinking", "thinking": "hm", "signature": ""},
    {"type": "redacted_thinking", "data": "x"},
    {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {"query": "x"}},
    {"type": "web_search_tool_result", "tool_use_id": "s1", "content": [{"type": "web_search_result", "url": "u"}]},
    {"type": "search_result", "source": "u", "title": "t", "content": [{"type": "text", "text": "found"}]},
    {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "green"}},
    {"type": "document", "source": {"type": "url", "url": "https://example.org/a.pdf"}},
    {"type": "input_audio", "input_audio": {"data": PIXEL, "format": "wav"}},
    {"type": "file", "file": {"file_id": "f"}},
    {"type": "tool_use", "id": "t1", "name": "look", "input": {"a": 1}},
    {"type": "tool_use", "id": "t2", "name": "look", "input": ""},
    {"type": "tool_result", "tool_use_id": "t2", "content": [IMAGES[0], {"type": "future"}]},
    {"type": "tool_result", "tool_use_id": "t1", "content": "seen"},
    {"type": "tool_result", "content": None},
    {"type": "hologram", "text": "new", "\ud83d": "\udc00"},
    {"type": "hologram", "frames": [{"a": [1, None, True]}]},
]
CALLS: list[Any] = [
    {"id": "c1", "type": "function", "function": {"name": "look", "arguments": ""}},
    {"id": "c2", "type": "function", "function": {"name": "look", "arguments": '{"a": "\\ud83d"}'}},
    {"id": "c2", "function": {"name": "look", "arguments": "{"}},
    {"id": 3, "function": {"name": "look", "arguments": {"a": 1}}},
    {"function": {"name": "look", "arguments": "[" * 150 + "]" * 150}},
    {"id": "c4", "type": "custom", "custom": {"name": "patch", "input": "x"}},
    {"id": "c5", "type": "future"},
    {"type": "function", "function": None},
    "call",
]
ITEMS: list[Any] = [
    *ODD,
    {"type": "reasoning", "summary": [], "content": None},
    {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hm"}]},
    {"type": "reasoning", "summary": "hm"},
    {"type": "function_call", "call_id": "c1", "name": "look", "arguments": ""},
    {"type": "function_call", "call_id": "c2", "name": "look", "namespace": "mcp__eye", "arguments": "{"},
    {"type": "custom_tool_call", "call_id": "c3", "name": "patch", "input": "x"},
    {"type": "local_shell_call", "call_id": "c4", "action": {"command": ["ls"]}},
    {"type": "web_search_call", "id": "w", "status": "completed", "action": {"query": "x"}},
    {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_image", "image_url": "data:,"}]},
    {"type": "function_call_output", "call_id": "c1", "output": 5},
    {"type": "custom_tool_call_output", "call_id": "c9", "output": "none"},
    {"type": "local_shell_call_output", "call_id": "c4", "output": "a"},
    {"type": "mcp_list_tools", "server_label": "x", "tools": []},
    {"type": "compaction", "encrypted_content": "x"},
    {"type": "future_call", "x": 1},
]
ROLES = ["user", "assistant", "system", "tool", "developer", "function", "robot", None, 5]

blocks = st.lists(st.sampled_from(BLOCKS), max_size=4)
contents = st.one_of(blocks, st.sampled_from(["said", "", None, 5, {"type": "future"}]))
messages = st.fixed_dictionaries(
    {"role": st.sampled_from(ROLES), "content": contents},
    optional={
        "tool_calls": st.one_of(st.lists(st.sampled_from(CALLS), max_size=3), st.sampled_from([None, {}, "x"])),
        "tool_call_id": st.sampled_from(["c1", "c2", "c7", 3, None]),
        "reasoning_content": st.sampled_from(["hm", None, 5]),
        "thinking_blocks": st.just([{"type": "thinking", "thinking": "hm"}]),
        "name": st.sampled_from(["look", None, 5]),
        "images": st.sampled_from([[], [PIXEL], "x", None]),
    },
)
histories = st.lists(st.one_of(messages, messages, st.sampled_from(["text", 5, None])), max_size=6)
items = st.lists(st.one_of(st.sampled_from(ITEMS), messages), max_size=8)
QUESTION = {"role": "user", "content": "And now?"}


def ask(served: Served, dialect: str, history: list[Any]) -> Any:
    """Send the history with a question in plain text."""
    said = [*history, QUESTION]
    path, body = {
        "chat": ("/v1/chat/completions", {"messages": said}),
        "anthropic": ("/v1/messages", {"messages": said, "max_tokens": 100}),
        "count": ("/v1/messages/count_tokens", {"messages": said}),
        "responses": ("/v1/responses", {"input": said, "store": False}),
        "ollama": ("/api/chat", {"messages": said, "stream": False}),
        "native": ("/chat", {"messages": said}),
        "template": ("/apply-template", {"messages": said}),
        "assistant": ("/api/v1/assistant/chat", {"prompt": "And now?", "history": history}),
    }[dialect]
    return served.http.post(path, content=json.dumps(body))


DIALECTS = ("chat", "anthropic", "count", "ollama", "native", "template", "assistant")


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_history_is_answered(thinking_server: Served, dialect: str) -> None:
    @settings(max_examples=40)
    @given(histories)
    def check(history: list[Any]) -> None:
        response = ask(thinking_server, dialect, history)
        assert response.status_code == 200, response.text
        assert len(response.headers.get("x-locallab-notes", "")) < 4096
        response.text.encode()  # no half of a pair comes back

    check()


def test_every_history_of_items_is_answered(thinking_server: Served) -> None:
    @settings(max_examples=100)
    @given(items)
    def check(history: list[Any]) -> None:
        response = ask(thinking_server, "responses", history)
        assert response.status_code == 200, response.text

    check()


@pytest.mark.parametrize("dialect", [*DIALECTS, "responses"])
@pytest.mark.parametrize("block", BLOCKS, ids=[str(at) for at in range(len(BLOCKS))])
def test_every_block_is_taken_in_a_history(thinking: Served, dialect: str, block: Any) -> None:
    said = {"role": "user", "content": [{"type": "text", "text": "marked"}, block]}
    response = ask(thinking, dialect, [said, {"role": "assistant", "content": [block]}])
    assert response.status_code == 200, response.text
    if thinking.engine.submitted:
        assert "marked" in thinking.engine.submitted[-1][0]


@pytest.mark.parametrize("dialect", ["chat", "anthropic", "responses", "native", "assistant", "ollama"])
def test_the_prompt_and_the_header_say_that_there_was_an_image(thinking: Served, dialect: str) -> None:
    response = ask(thinking, dialect, [{"role": "user", "content": [IMAGES[0]]}, {"role": "assistant", "content": "no"}])
    assert "[image: image/png, 9 bytes, not shown]" in thinking.engine.submitted[-1][0]
    assert "image/png" in response.headers["x-locallab-notes"]


REFUSED = {
    "chat": "/v1/chat/completions",
    "anthropic": "/v1/messages",
    "responses": "/v1/responses",
    "native": "/chat",
    "ollama": "/api/chat",
}


@pytest.mark.parametrize("dialect", REFUSED)
@pytest.mark.parametrize("block", [IMAGES[0], {"type": "hologram"}], ids=["image", "unknown"])
def test_what_the_user_has_just_said_is_refused(thinking: Served, dialect: str, block: Any) -> None:
    said = [{"role": "user", "content": "hi"}, {"role": "user", "content": [block]}]
    body = {"input": said} if dialect == "responses" else {"messages": said, "max_tokens": 5}
    response = thinking.http.post(REFUSED[dialect], json=body)
    assert response.status_code == 400
    answered = [*said, {"role": "assistant", "content": "I cannot see."}, QUESTION]
    body = {"input": answered} if dialect == "responses" else {"messages": answered, "max_tokens": 5}
    assert thinking.http.post(REFUSED[dialect], json=body).status_code == 200


def test_notes_are_bounded(thinking: Served) -> None:
    response = ask(thinking, "count", [{"role": "user", "content": [{"type": "new\r\n" * 999}]}] * 500)
    notes = response.headers["x-locallab-notes"]
    assert len(notes) < 4096 and notes.endswith("and 490 more")


HALF = '"half \\ud83d of \\ud83d\\ude00"'
HALVES = {
    "/v1/chat/completions": '{"messages": [{"role": "user", "content": HALF}], "metadata": {HALF: 1}}',
    "/v1/completions": '{"prompt": HALF}',
    "/v1/responses": '{"input": HALF, "metadata": {HALF: HALF}}',
    "/v1/messages": '{"max_tokens": 9, "messages": [{"role": "user", "content": HALF}]}',
    "/api/chat": '{"messages": [{"role": "user", "content": HALF}]}',
    "/api/generate": '{"prompt": HALF}',
    "/chat": '{"messages": [{"role": "user", "content": HALF}]}',
    "/generate": '{"prompt": HALF}',
    "/api/v1/assistant/chat": '{"prompt": HALF}',
    "/completion": '{"prompt": HALF}',
}


@pytest.mark.parametrize(("path", "body"), HALVES.items(), ids=HALVES)
def test_halves_of_pairs_are_read(thinking: Served, path: str, body: str) -> None:
    response = thinking.http.post(path, content=body.replace("HALF", HALF))
    assert response.status_code == 200, response.text
    assert "half \ufffd of 😀" in thinking.engine.submitted[-1][0]


@pytest.mark.parametrize("name", ["messages", "self"])
def test_variables_of_the_template_that_it_has_already(thinking: Served, name: str) -> None:
    for path in ("/v1/chat/completions", "/apply-template"):
        response = thinking.http.post(path, json={"messages": [QUESTION], "chat_template_kwargs": {name: []}})
        assert response.status_code == 400 and f"chat_template_kwargs.{name}" in response.text


@pytest.mark.parametrize("levels", [90, 500, 900, 5000])
@pytest.mark.parametrize("dialect", ["chat", "anthropic", "responses", "ollama"])
def test_deeply_nested_arguments(thinking: Served, dialect: str, levels: int) -> None:
    nested = '{"a": ' * levels + '"@"' + "}" * levels
    call = {
        "chat": '{"id": "c", "function": {"name": "look", "arguments": TEXT}}',
        "ollama": '{"function": {"name": "look", "arguments": VALUE}}',
        "responses": '{"type": "function_call", "call_id": "c", "name": "look", "arguments": TEXT}',
        "anthropic": '{"type": "tool_use", "id": "c", "name": "look", "input": VALUE}',
    }[dialect]
    key = {"chat": "tool_calls", "ollama": "tool_calls", "anthropic": "content"}.get(dialect)
    said = call if key is None else f'{{"role": "assistant", "{key}": [{call}]}}'
    path = {"chat": "/apply-template", "anthropic": "/v1/messages/count_tokens"}.get(dialect) or REFUSED[dialect]
    body = f'{{"{"input" if key is None else "messages"}": [{said}, {json.dumps(QUESTION)}], "max_tokens": 5}}'
    body = body.replace("TEXT", json.dumps(nested)).replace("VALUE", nested)
    response = thinking.http.post(path, content=body)
    if response.status_code == 200:
        assert "@" in (thinking.engine.submitted[-1][0] if thinking.engine.submitted else response.text + "@")
    else:  # a body that is nested too deeply, or a prompt that is too long
        assert response.status_code == 400 and levels > 100 and dialect != "chat"
        assert "nested" in response.text or "context" in response.text
