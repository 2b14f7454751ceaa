"""The tree of messages, and files of conversations: pure modules, run in a browser."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from tests.support.browser import tab
from tests.support.http_server import Served


@pytest.fixture(scope="module")
def page(browser: Browser, shared: Served) -> Iterator[Page]:
    with tab(browser, shared.url) as found:
        found.open()
        yield found.page


Run = Callable[..., Any]


@pytest.fixture
def run(page: Page) -> Run:
    """Runs the body of a function of `m`, the module, and `x`, the argument."""
    return lambda body, x=None: page.evaluate(f"async (x) => {{ const m = await import('./page/conversation.js'); {body} }}", x)


def test_the_shown_branch_is_the_one_that_was_chosen(run: Run) -> None:
    found = run(
        """const c = m.Conversation.create();
        const a = c.append(null, { role: "user", content: "one" });
        const b = c.append(a.id, { role: "assistant", content: "first" });
        const d = c.append(b.id, { role: "user", content: "more" });
        const e = c.append(a.id, { role: "assistant", content: "second" });
        const shown = () => c.path().map((each) => each.content);
        const after = shown();
        c.choose(b.id);
        return [after, shown(), c.siblings(e.id).length, c.path(d.id).map((each) => each.content), c.title];"""
    )
    assert found == [["one", "second"], ["one", "first", "more"], 2, ["one", "first", "more"], "one"]


def test_a_message_whose_parent_was_lost_is_kept(run: Run) -> None:
    lost = {"id": "b", "conversation": "c", "parent": "a", "role": "user", "content": "hi", "order": 1}
    assert run("return new m.Conversation({ id: 'c' }, [x]).path().map((each) => each.content);", lost) == ["hi"]


def test_messages_in_the_shape_of_openai(run: Run) -> None:
    messages = [
        {"role": "user", "content": "Look", "files": [
            {"kind": "image", "name": "a.png", "data": "data:image/png;base64,AA=="},
            {"kind": "audio", "name": "a.WAV", "data": "data:audio/wav;base64,BB=="},
            {"kind": "text", "name": "a.md", "data": "```\nx\n```"},
        ]},
        {"role": "assistant", "content": "", "calls": [{"id": "1", "name": "f", "arguments": "{}"}], "reasoning": "hm"},
        {"role": "tool", "content": "42", "call": "1", "name": "f"},
    ]  # fmt: skip
    assert run("return m.toRequest(x, 'Be brief.');", messages) == [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
                {"type": "input_audio", "input_audio": {"data": "BB==", "format": "wav"}},
                {"type": "text", "text": "a.md:\n````\n```\nx\n```\n````"},
                {"type": "text", "text": "Look"},
            ],
        },
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "1", "content": "42"},
    ]


def test_a_file_gives_back_what_was_exported_with_new_ids(run: Run) -> None:
    found = run(
        """const c = m.Conversation.create({ temperature: 0.5 });
        const a = c.append(null, { role: "user", content: "one" });
        c.append(a.id, { role: "assistant", content: "first", status: "done" });
        c.append(a.id, { role: "assistant", content: "second", status: "done" });
        c.choose(c.siblings(c.path().at(-1).id)[0]);
        const [read] = m.fromJson(m.toJson([c]));
        const texts = read.path().map((each) => each.content);
        return [read.id !== c.id, texts, read.settings, read.messages.size, m.toMarkdown(read)];"""
    )
    assert found[:4] == [True, ["one", "first"], {"temperature": 0.5}, 3]
    assert found[4] == "# one\n\n## You\n\none\n\n## Assistant\n\nfirst\n"


def exported(**message: Any) -> dict[str, Any]:
    first = {"id": "a", "parent": None, "role": "user", "content": "hi", **message}
    return {"format": "locallab-conversations", "version": 1, "conversations": [{"id": "c", "messages": [first]}]}


WRONG = {
    "no JSON": ("{", "The file is no JSON: "),
    "another file": ({"a": 1}, 'format: must be "locallab-conversations"'),
    "a list": ([1], 'format: must be "locallab-conversations"'),
    "null": (None, "format: must be"),
    "no conversations": ({"format": "locallab-conversations"}, "conversations: must be a list"),
    "no messages": (exported() | {"conversations": [{}]}, "conversations[0].messages: must be a list"),
    "a role": (exported(role="robot"), "conversations[0].messages[0].role: must be user, assistant or tool"),
    "a parent": (exported(parent="z"), "conversations[0].messages[0].parent: must be null or the id of an earlier message"),
    "content": (exported(content=7), "conversations[0].messages[0]: must have the texts id and content"),
    "calls": (
        exported(calls=[{"id": "1"}]),
        "conversations[0].messages[0].calls[0]: must have the texts id, name and arguments",
    ),
    "an address as a file": (
        exported(files=[{"kind": "image", "name": "x", "data": "https://example.com/x.png"}]),
        "conversations[0].messages[0].files[0]: must have kind, name and data",
    ),
    "a field": (exported(reasoning=[1]), "conversations[0].messages[0].reasoning: must be of the type string"),
}


@pytest.mark.parametrize(("file", "reason"), WRONG.values(), ids=WRONG)
def test_a_wrong_file_names_the_field(run: Run, file: Any, reason: str) -> None:
    text = file if isinstance(file, str) else json.dumps(file)
    assert run("try { m.fromJson(x); return 'read'; } catch (error) { return error.message; }", text).startswith(reason)
