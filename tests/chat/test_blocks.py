"""Blocks as text."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from locallab.chat.blocks import MEDIA, BlockReader
from locallab.errors import InvalidField

PNG = base64.b64encode(bytes(34_000)).decode()
TEXT64 = base64.b64encode("Grün".encode()).decode()

SHOWN: dict[str, tuple[Any, str]] = {
    "image of Anthropic": (
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}},
        "[image: image/png, 34 kB, not shown]",
    ),
    "image of chats": (
        {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{PNG}"}},
        "[image: image/jpeg, 34 kB, not shown]",
    ),
    "image of Responses": (
        {"type": "input_image", "image_url": "https://example.org/a.png?key=1"},
        "[image: https://example.org/a.png, not shown]",
    ),
    "image of nothing": ({"type": "image"}, "[image: not shown]"),
    "sound": ({"type": "input_audio", "input_audio": {"data": PNG, "format": "wav"}}, "[audio: wav, 34 kB, not shown]"),
    "PDF": (
        {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": PNG}},
        "[document: application/pdf, 34 kB, not shown]",
    ),
    "file by its id": ({"type": "file", "file": {"file_id": "f1"}}, "[file: not shown]"),
    "tool of the service": (
        {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {"query": "llama"}},
        '[server_tool_use: {"name": "web_search", "input": {"query": "llama"}}]',
    ),
    "its result": (
        {"type": "web_search_tool_result", "tool_use_id": "s1", "content": [{"title": "Llama", "encrypted_content": "x"}]},
        '[web_search_tool_result: {"tool_use_id": "s1", "content": [{"title": "Llama"}]}]',
    ),
    "not yet invented": ({"type": "hologram", "text": "a\nb"}, "[hologram] a\nb"),
    "of no type": ({"x": 1}, '[block: {"x": 1}]'),
    "type of a wrong type": ({"type": [1], "x": 1}, '[block: {"x": 1}]'),
    "number": (5, "5"),
    "text without text": ({"type": "text", "text": {"x": 1}}, '{"x": 1}'),
}

READ: dict[str, tuple[Any, str]] = {
    "document": (
        {"type": "document", "title": "Note", "source": {"type": "text", "media_type": "text/plain", "data": "green"}},
        "[Note]\ngreen",
    ),
    "document of blocks": (
        {"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": "a"}]}},
        "a",
    ),
    "document in base64": (
        {"type": "document", "source": {"type": "base64", "media_type": "text/markdown", "data": TEXT64}},
        "Grün",
    ),
    "file": (
        {"type": "input_file", "filename": "a.txt", "file_data": f"data:text/plain;base64,{TEXT64}"},
        "[a.txt]\nGrün",
    ),
    "file in a chat": ({"type": "file", "file": {"file_data": "data:text/plain,Gr%C3%BCn"}}, "Grün"),
    "search result": (
        {"type": "search_result", "source": "https://a.b", "title": "T", "content": [{"type": "text", "text": "found"}]},
        "[T]\n[https://a.b]\nfound",
    ),
}


@pytest.mark.parametrize(("block", "text"), [*SHOWN.values(), *READ.values()], ids=[*SHOWN, *READ])
def test_every_block_becomes_text(block: Any, text: str) -> None:
    notes: list[str] = []
    assert BlockReader(notes).read("messages[0].content", ["before", block]).text == f"before\n{text}"
    if isinstance(block, dict) and str(block.get("type")) in MEDIA and "not shown" in text:
        assert notes == [f"messages[0].content: {text}"]


@pytest.mark.parametrize(("block", "text"), READ.values(), ids=READ)
def test_what_the_user_has_just_said_is_taken_if_it_is_text(block: Any, text: str) -> None:
    assert BlockReader([], new=True).read("content", [block]).text == text


@pytest.mark.parametrize("block", [block for block, _ in SHOWN.values()], ids=SHOWN)
def test_what_the_user_has_just_said_is_refused_if_it_cannot_be_shown(block: Any) -> None:
    with pytest.raises(InvalidField, match="content"):
        BlockReader([], new=True).read("content", [block])


def test_thoughts_stand_apart() -> None:
    blocks = [
        {"type": "thinking", "thinking": "a", "signature": "x"},
        {"type": "thinking", "thinking": [{"type": "text", "text": "b"}]},
        {"type": "reasoning", "text": "c"},
        {"type": "redacted_thinking", "data": "x"},
        {"type": "text", "text": "said"},
    ]
    content = BlockReader([]).read("content", blocks)
    assert (content.reasoning, content.text) == ("a\nb\nc", "said")


def test_a_foreign_block_is_shown_within_bounds() -> None:
    deep: Any = "bottom"
    for _ in range(500):
        deep = {"type": "x", "in": deep}
    block = {"type": "future", "list": ["x" * 100_000] * 2, "many": list(range(10_000)), "deep": deep}
    text = BlockReader([]).read("content", [block]).text
    assert len(text) < 10_000 and "(100000 characters)" in text and "bottom" not in text
