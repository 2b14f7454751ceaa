from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from locallab.cli.api_client import ApiClient
from locallab.cli.terminal.conversation import Talk
from locallab.cli.terminal.saved_files import load, save, tools
from locallab.errors import ConfigError

CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
MESSAGES: list[dict[str, Any]] = [
    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}, {"type": "text", "text": "what?"}]},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c", "content": "42"},
    {"role": "assistant", "content": "It is 42."},
]


def talk(system: str = "") -> Talk:
    return Talk(ApiClient("http://127.0.0.1:9"), "tiny:1b", system)


@pytest.mark.parametrize("system", ["", "Be brief."])
def test_what_is_saved_is_loaded(tmp_path: Path, system: str) -> None:
    one, other = talk(system), talk("of the other")
    one.restart(MESSAGES)
    save(one, f"{tmp_path}/talk.json")
    assert load(other, f"{tmp_path}/talk.json") == 4 + bool(system)
    assert (other.messages, other.system) == (MESSAGES, system)


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant"]), st.text(st.characters(exclude_categories=("Cs",))))))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_is_saved_and_loaded(tmp_path: Path, turns: list[tuple[str, str]]) -> None:
    path = tmp_path / "talk.json"
    path.unlink(missing_ok=True)
    one, other = talk(), talk()
    one.restart([{"role": role, "content": text} for role, text in turns])
    save(one, str(path))
    load(other, str(path))
    assert other.messages == one.messages


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("## You\n\nhello", "a conversation is what /save FILE.json writes"),
        ("", "a conversation is"),
        ('{"messages": []}', r"Expected `array`, got `object`"),
        ('[{"role": "robot", "content": "x"}]', r"'robot' - at `\$\[0\].role`"),
        ('[{"role": "user", "content": 5}]', r"at `\$\[0\].content`"),
        ('[{"role": "user", "content": [{"type": "video"}]}]', r"'video' - at `\$\[0\].content\[0\].type`"),
        ('[{"role": "assistant", "tool_calls": [{"id": "c"}]}]', "`function` - at"),
        ('["user"]', r"at `\$\[0\]`"),
        ("[" * 5000, "a conversation is"),
    ],
)
def test_what_is_no_conversation_changes_nothing(tmp_path: Path, content: str, problem: str) -> None:
    path = tmp_path / "talk.json"
    path.write_text(content)
    one = talk("Be brief.")
    one.restart(MESSAGES)
    with pytest.raises(ConfigError, match=problem) as caught:
        load(one, str(path))
    assert str(path) in str(caught.value)
    assert (one.messages, one.system) == (MESSAGES, "Be brief.")


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name, problem in (("none.json", "No such file"), ("fifo", "not a regular file"), ("a\0b", "null")):
        with pytest.raises(ConfigError, match=problem):
            load(talk(), f"{tmp_path}/{name}")
    with pytest.raises(ConfigError, match="No such file"):
        save(talk(), f"{tmp_path}/no/talk.json")
    (tmp_path / "talk.md").write_text("mine")
    with pytest.raises(ConfigError, match="File exists"):
        save(talk(), f"{tmp_path}/talk.md")
    assert (tmp_path / "talk.md").read_text() == "mine"


def test_tools(tmp_path: Path) -> None:
    path = tmp_path / "tools.json"
    found = [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}]
    path.write_text(json.dumps(found))
    assert tools(str(path)) == found
    path.write_text('[{"name": "f"}]')
    with pytest.raises(ConfigError, match=r"`function`.*; tools are a JSON list"):
        tools(str(path))
