"""Chat templates of released models: each gets its format, and none loses a part of a conversation."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

from locallab.chat import ChatTemplate, Message, ToolCall
from locallab.chat.tools import Tool, ToolChoice, choose
from locallab.chat.turn import ChatRequest, plan
from locallab.errors import InvalidField
from tests.support import installed_clients

pytestmark = pytest.mark.clients

WEATHER = Tool("weather", "Of a place", {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]})
CALL = ToolCall("call00001", "weather", '{"city": "Oslo"}')
SYSTEM, USER = Message("system", "Be brief."), Message("user", "How is it?")
CALLED = [SYSTEM, USER, Message("assistant", "", tool_calls=(CALL,)), Message("tool", "It rains.", "weather", (), CALL.id)]
LATE = [USER, SYSTEM, Message("user", "And now?")]

FORMATS = {
    "Qwen-Qwen2.5-7B-Instruct": "hermes",
    "Qwen-Qwen3-0.6B": "hermes",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": "hermes",
    "ibm-granite-granite-4.0": "hermes",
    "Qwen3-Coder": "qwen-coder",
    "Qwen3.5-4B": "qwen-coder",
    "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": "qwen-coder",
    "meta-llama-Llama-3.1-8B-Instruct": "llama3",
    "meta-llama-Llama-3.2-3B-Instruct": "llama3",
    "meta-llama-Llama-3.3-70B-Instruct": "llama3",
    "mistralai-Mistral-Nemo-Instruct-2407": "mistral-array",
    "Mistral-Small-3.2-24B-Instruct-2506": "mistral",
    "unsloth-mistral-Devstral-Small-2507": "mistral",
    "mistralai-Ministral-3-14B-Reasoning-2512": "mistral",
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": "deepseek-r1",
    "deepseek-ai-DeepSeek-V3.1": "deepseek",
    "ibm-granite-granite-3.3-2B-Instruct": "granite",
    "google-gemma-4-31B-it": "gemma",
    "google-gemma-2-2b-it": "generic",
    "openai-gpt-oss-120b": "harmony",
    "meetkai-functionary-medium-v3.1": "function-tags",
    "meetkai-functionary-medium-v3.2": "recipients",
    "microsoft-Phi-3.5-mini-instruct": "generic",
    "GLM-4.6": "glm",
    "GLM-4.7-Flash": "glm",
    "Apriel-1.6-15b-Thinker-fixed": "apriel",
    "fireworks-ai-llama-3-firefunction-v2": "firefunction",
}
"""Formats of known models."""


@functools.cache
def template(name: str) -> ChatTemplate:
    return ChatTemplate((installed_clients.templates() / f"{name}.jinja").read_text(), "<s>", "</s>")


def names() -> Iterator[str]:
    return (path.stem for path in sorted(Path(installed_clients.templates()).glob("*.jinja")))


def prompt(name: str, messages: list[Message], tools: tuple[Tool, ...] = (), choice: ToolChoice | None = None) -> str:
    request = ChatRequest(messages=messages, tools=tools, choice=choice or ToolChoice())
    try:
        return plan(request, template(name), {}).prompt
    except InvalidField as error:
        return str(error)


def test_the_format_of_each_is_known() -> None:
    assert {name: choose(template(name).source).name for name in FORMATS} == FORMATS


def test_nothing_of_a_conversation_is_lost() -> None:
    prompts = {name: prompt(name, [SYSTEM, USER]) for name in names()}
    assert len(prompts) > 60
    assert [name for name, text in prompts.items() if not (SYSTEM.content in text and USER.content in text)] == []
    assert [name for name in prompts if SYSTEM.content not in prompt(name, LATE)] == []


@pytest.mark.parametrize("tools", [(), (WEATHER,)], ids=["no tools", "tools"])
def test_nothing_of_a_call_is_lost(tools: tuple[Tool, ...]) -> None:
    parts = (SYSTEM.content, USER.content, "weather", "Oslo", "It rains.")
    lost = {name: [part for part in parts if part not in prompt(name, CALLED, tools)] for name in names()}
    assert {name: missing for name, missing in lost.items() if missing} == {}


@pytest.mark.parametrize("mode", ["auto", "required"])
def test_every_prompt_lists_the_tools(mode: str) -> None:
    choice = ToolChoice(mode)  # type: ignore[arg-type]
    missing = [name for name in names() if "Of a place" not in prompt(name, [SYSTEM, USER], (WEATHER,), choice)]
    assert missing == []
