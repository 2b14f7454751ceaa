"""Bodies of Anthropic's messages, as neutral requests."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta

from locallab.chat import Message, ToolCall
from locallab.chat.blocks import BlockReader, Content
from locallab.chat.messages import arguments_text, newest
from locallab.chat.repairs import repaired
from locallab.chat.turn import ChatRequest, ReasoningOptions
from locallab.engine import ModelInfo
from locallab.errors import InvalidField
from locallab.media.intake import Intake
from locallab.server.dialects.anthropic.fields import MESSAGES
from locallab.server.fields.body import first, whole
from locallab.server.fields.constraint import schema_of
from locallab.server.fields.reasoning import of_effort
from locallab.server.fields.sampling import Sampling
from locallab.server.fields.table import Others
from locallab.server.fields.tools import read_choice, read_tools

ROLES = {"user": "user", "assistant": "assistant", "system": "system", "ctx": "system", "msg": "user"}
"""Roles that clients send; Claude Code puts system messages into the conversation, at times under names of its own."""

CONVERSATION = {"type": "array", "minItems": 1, "items": {"type": "object", "required": ["role"]}}

TEMPERATURE = 1.0
"""The API's default."""

BILLING = "x-anthropic-billing-header:"
"""Beginning of a system text of Claude Code that is left out: it is for its own service, and differs in every request."""


class MessagesBody(msgspec.Struct, kw_only=True):
    """The body of both routes."""

    messages: Annotated[Any, Meta(description="the conversation, oldest first", extra_json_schema=CONVERSATION)] = None
    system: Annotated[Any, Meta(description="system prompt: a text or a list of text blocks")] = None
    model: Annotated[str | None, Meta(description="name of the model; an unknown name is the current one")] = None
    max_tokens: Annotated[int | None, Meta(description="maximum tokens of the answer; required to get one")] = None
    stop_sequences: Annotated[list[str] | None, Meta(description="strings that end the answer and are not part of it")] = None
    stream: Annotated[bool | None, Meta(description="stream the answer")] = None
    temperature: Annotated[float | None, Meta(description="sampling temperature; 0 is greedy")] = None
    top_p: Annotated[float | None, Meta(description="sample from the likeliest tokens whose probabilities add up to p")] = None
    top_k: Annotated[int | None, Meta(description="sample from the k likeliest tokens")] = None
    tools: Annotated[Any, Meta(description="functions the model may call; tools of the service are left out")] = None
    tool_choice: Annotated[Any, Meta(description="auto, any, none, or the tool to call")] = None
    thinking: Annotated[Any, Meta(description="enabled, perhaps with budget_tokens, adaptive, or disabled")] = None
    output_format: Annotated[Any, Meta(description="a JSON schema that the answer must match")] = None
    output_config: Annotated[Any, Meta(description="the same as its format, and the reasoning effort as its effort")] = None

    OTHERS: ClassVar[Others] = MESSAGES
    DEFAULTS: ClassVar[dict[str, float]] = {"temperature": TEMPERATURE}

    def sampling(self, info: ModelInfo) -> Sampling:
        """Return the sampling fields; the API's default temperature is for models that have none of their own."""
        return Sampling(
            temperature=first(self.temperature, info.sampling.get("temperature"), TEMPERATURE),
            top_p=self.top_p,
            top_k=self.top_k,
            stop=self.stop_sequences,
            max_tokens=self.max_tokens,
        )


def chat_request(body: MessagesBody, notes: list[str], media: Intake | None = None) -> ChatRequest:
    """Return the neutral request with its files in `media`, and note repairs and omissions. Raises InvalidField."""
    tools = read_tools(body.tools, notes)
    config = body.output_config if isinstance(body.output_config, Mapping) else {}
    form, schema = body.output_format or config.get("format"), None
    if form is not None:
        if not isinstance(form, Mapping) or form.get("type") != "json_schema" or not isinstance(form.get("schema"), Mapping):
            raise InvalidField("output_format", 'expected {"type": "json_schema", "schema": {...}}')
        schema = schema_of(form["schema"], "output_format")
    messages = repaired([*_system(body.system, notes), *_messages(body.messages, notes, media)], notes)
    return ChatRequest(
        messages=messages,
        tools=tools,
        choice=read_choice(body.tool_choice, None, tools),
        answer=schema,
        reasoning=_thinking(body.thinking, config.get("effort")),
        continues=True,
    )


def _thinking(raw: object, effort: object) -> ReasoningOptions:
    """Read the reasoning options; reasoning is off by default, as in the API."""
    if raw is None:
        return ReasoningOptions(enabled=False)
    if not isinstance(raw, Mapping):
        raise InvalidField("thinking", "expected an object with a type")
    budget = whole(raw.get("budget_tokens"))
    if budget is not None and (type(budget) is not int or budget < 1):
        raise InvalidField("thinking.budget_tokens", "expected a positive number of tokens")
    if raw.get("type") == "disabled":
        return ReasoningOptions(enabled=False)
    if raw.get("type") not in ("enabled", "adaptive"):
        raise InvalidField("thinking.type", f"unknown type {raw.get('type')!r}; known: enabled, adaptive, disabled")
    return dataclasses.replace(of_effort(effort if isinstance(effort, str) else None, budget), enabled=True)


def _system(raw: object, notes: list[str]) -> Iterator[Message]:
    blocks = raw
    if not isinstance(raw, str | list | None):
        raise InvalidField("system", "expected a string or a list of text blocks")
    if isinstance(raw, list):
        texts = [block.get("text") if isinstance(block, Mapping) else block for block in raw]
        found = zip(raw, texts, strict=True)
        blocks = [block for block, text in found if not (isinstance(text, str) and text.startswith(BILLING))]
    if text := BlockReader(notes).read("system", blocks).text:
        yield Message("system", text)


def _messages(raw: object, notes: list[str], media: Intake | None) -> Iterator[Message]:
    if not isinstance(raw, list):
        raise InvalidField("messages", "expected a list of messages" if raw is not None else "is missing")
    if not raw:
        raise InvalidField("messages", "is empty")
    roles = [entry.get("role") if isinstance(entry, Mapping) else None for entry in raw]
    new = newest([ROLES.get(role) if isinstance(role, str) else None for role in roles])
    for index, (entry, role) in enumerate(zip(raw, roles, strict=True)):
        field, reader = f"messages[{index}]", BlockReader(notes, index == new, media)
        known = isinstance(role, str) and role in ROLES
        if reader.new and not isinstance(entry, Mapping):
            raise InvalidField(field, "expected an object with role and content")
        if reader.new and not known:
            raise InvalidField(f"{field}.role", f"unknown role {role!r}; known: {', '.join(ROLES)}")
        if not known:
            notes.append(f"{field}.role: unknown role {role!r}; passed on as the user's")
        content = entry.get("content") if isinstance(entry, Mapping) else entry
        yield from _message(f"{field}.content", ROLES[str(role)] if known else "user", content, reader)


def _message(field: str, role: str, raw: object, reader: BlockReader) -> Iterator[Message]:
    """Split a message with text, calls and results: each result is a message of its own, ahead of the rest."""
    if not isinstance(raw, list):
        yield Message(role, reader.read(field, raw).text)
        return
    content, results = Content(), 0
    calls: list[ToolCall] = []
    for index, block in enumerate(raw):
        where, kind = f"{field}[{index}]", block.get("type") if isinstance(block, Mapping) else None
        if kind == "tool_use" and role == "assistant":
            calls.append(ToolCall(str(block.get("id") or ""), str(block.get("name") or ""), arguments_text(block.get("input"))))
        elif kind == "tool_result":
            results += 1
            text = BlockReader(reader.notes, media=reader.media).read(f"{where}.content", block.get("content")).text
            yield Message("tool", text, tool_call_id=str(block.get("tool_use_id") or "") or None)
        else:
            reader.add(content, where, block)
    if content.texts or calls or not results:
        reasoning = content.reasoning if role == "assistant" else ""
        yield Message(role, content.text, tool_calls=tuple(calls), reasoning=reasoning)
