"""Bodies of Anthropic's messages, as neutral requests."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta

from locallab.chat import Message, ToolCall
from locallab.chat.messages import repaired
from locallab.chat.turn import ChatRequest, ReasoningOptions
from locallab.engine import ModelInfo
from locallab.errors import InvalidField
from locallab.server.fields.body import first, whole
from locallab.server.fields.constraint import schema_of
from locallab.server.fields.reasoning import of_effort
from locallab.server.fields.sampling import Sampling
from locallab.server.fields.tools import read_choice, read_tools

ROLES = {"user": "user", "assistant": "assistant", "system": "system", "ctx": "system", "msg": "user"}
"""Roles that clients send; Claude Code puts system messages into the conversation, at times under names of its own."""

CONVERSATION = {"type": "array", "minItems": 1, "items": {"type": "object", "required": ["role"]}}

TEMPERATURE = 1.0
"""The API's default."""

BILLING = "x-anthropic-billing-header:"
"""Beginning of a system text of Claude Code that is left out: it is for its own service, and differs in every request."""


class MessagesBody(msgspec.Struct, kw_only=True):
    """Fields that only the service uses (metadata, service_tier, cache_control and the like) are ignored."""

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


def chat_request(body: MessagesBody, notes: list[str]) -> ChatRequest:
    """Return the neutral request, and note repairs and omissions. Raises InvalidField."""
    tools = read_tools(body.tools, notes)
    config = body.output_config if isinstance(body.output_config, Mapping) else {}
    form, schema = body.output_format or config.get("format"), None
    if form is not None:
        if not isinstance(form, Mapping) or form.get("type") != "json_schema" or not isinstance(form.get("schema"), Mapping):
            raise InvalidField("output_format", 'expected {"type": "json_schema", "schema": {...}}')
        schema = schema_of(form["schema"], "output_format")
    messages = repaired([*_system(body.system), *_messages(body.messages)], notes)
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


def _system(raw: object) -> Iterator[Message]:
    blocks = raw
    if isinstance(raw, list):
        texts = [block.get("text") if isinstance(block, Mapping) else block for block in raw]
        found = zip(raw, texts, strict=True)
        blocks = [block for block, text in found if not (isinstance(text, str) and text.startswith(BILLING))]
    if text := _text("system", blocks):
        yield Message("system", text)


def _messages(raw: object) -> Iterator[Message]:
    if not isinstance(raw, list):
        raise InvalidField("messages", "expected a list of messages" if raw is not None else "is missing")
    if not raw:
        raise InvalidField("messages", "is empty")
    for index, entry in enumerate(raw):
        field = f"messages[{index}]"
        if not isinstance(entry, Mapping):
            raise InvalidField(field, "expected an object with role and content")
        role = entry.get("role")
        if not isinstance(role, str) or role not in ROLES:
            raise InvalidField(f"{field}.role", f"unknown role {role!r}; known: {', '.join(ROLES)}")
        yield from _message(f"{field}.content", ROLES[role], entry.get("content"))


def _message(field: str, role: str, content: object) -> Iterator[Message]:
    """Split a message with text, calls and results: each result is a message of its own, ahead of the rest."""
    blocks = content if isinstance(content, list) else [{"type": "text", "text": content or ""}]
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[ToolCall] = []
    results = 0
    for index, block in enumerate(blocks):
        where = f"{field}[{index}]"
        if not isinstance(block, Mapping):
            raise InvalidField(where, "expected a content block")
        match block.get("type"):
            case "text":
                texts.append(_text(f"{where}.text", block.get("text")))
            case "tool_use":
                arguments = json.dumps(block.get("input") or {}, ensure_ascii=False)
                calls.append(ToolCall(str(block.get("id") or ""), str(block.get("name") or ""), arguments))
            case "tool_result":
                results += 1
                call_id = str(block.get("tool_use_id") or "") or None
                yield Message("tool", _text(f"{where}.content", block.get("content")), tool_call_id=call_id)
            case "thinking":
                thoughts.append(_text(f"{where}.thinking", block.get("thinking")))
            case "redacted_thinking":
                pass  # only its author can read it
            case kind:
                raise InvalidField(where, f"cannot take a block of type {kind!r}; known: text, tool_use, tool_result, thinking")
    if texts or calls or not results:
        yield Message(role, "\n".join(texts), tool_calls=tuple(calls), reasoning="\n".join(thoughts))


def _text(field: str, raw: object) -> str:
    """Read a text, or join the texts of a list of blocks."""
    if raw is None or isinstance(raw, str):
        return raw or ""
    if isinstance(raw, Sequence):
        blocks = [block if isinstance(block, Mapping) else {"type": "text", "text": block} for block in raw]
        wrong = next((block for block in blocks if block.get("type") != "text" or not isinstance(block.get("text"), str)), None)
        if wrong is None:
            return "\n".join(block["text"] for block in blocks)
        raise InvalidField(field, f"cannot take a block of type {wrong.get('type')!r}; known: text")
    raise InvalidField(field, "expected a string or a list of text blocks")
