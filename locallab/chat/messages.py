"""Neutral messages of a conversation: parsed from clients' JSON, and reshaped for strict templates."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from locallab.errors import InvalidField

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
"""Roles that clients may send, with the one that templates know."""

TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
"""Types of content parts that hold text, with the key of that text."""

REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
"""Keys under which clients return the assistant's reasoning; values that are not text are ignored."""


@dataclasses.dataclass(frozen=True, slots=True)
class ToolCall:
    """An earlier call of the assistant. `arguments` is JSON text, or whatever the model wrote instead."""

    id: str
    name: str
    arguments: str


@dataclasses.dataclass(frozen=True, slots=True)
class Message:
    """A message. `role` is system, user, assistant or tool; `tool_call_id` names the call that a tool message answers.

    `reasoning` is the assistant's reasoning ahead of `content`: templates render it within the current turn.
    """

    role: str
    content: str
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    reasoning: str = ""


def normalize(messages: object, notes: list[str] | None = None) -> list[Message]:
    """Parse and repair a client's `messages`: null counts as not set, unknown keys are ignored, roles may come in any order.

    Repairs are added to `notes`. Raises InvalidField that names the field, such as `messages[2].content`.
    """
    if not isinstance(messages, list):
        raise InvalidField("messages", "expected a list of messages" if messages is not None else "is missing")
    if not messages:
        raise InvalidField("messages", "is empty")
    parsed = [_message(f"messages[{index}]", message) for index, message in enumerate(messages)]
    return repaired(parsed, [] if notes is None else notes)


def with_system(messages: Sequence[Message], system: str | None) -> Sequence[Message]:
    """Put a system prompt in front of a conversation that has none."""
    if not system or any(message.role == "system" for message in messages):
        return messages
    return [Message("system", system), *messages]


def repaired(messages: Sequence[Message], notes: list[str]) -> list[Message]:
    """Return the messages with everything that models could not read repaired; each repair adds a line to `notes`.

    Repaired are tool results that answer no call, and calls whose arguments are not a JSON object.
    """
    known: set[str] = set()
    result: list[Message] = []
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if message.role == "tool" and message.tool_call_id not in known and (message.tool_call_id or not known):
            notes.append(f"{where}: the tool result answers no call; passed on as a user message")
            message = Message("user", f"Result of {message.name or 'a tool'}: {message.content}")
        if message.tool_calls:
            known |= {call.id for call in message.tool_calls}
            calls = list(message.tool_calls)
            for i, call in enumerate(calls):
                if not isinstance(arguments(call), dict):
                    notes.append(f"{where}.tool_calls[{i}]: the arguments are not a JSON object; put under the key 'raw'")
                    calls[i] = dataclasses.replace(call, arguments=json.dumps({"raw": call.arguments}, ensure_ascii=False))
            message = dataclasses.replace(message, tool_calls=tuple(calls))
        result.append(message)
    return result


def without_reasoning(messages: Sequence[Message]) -> list[Message]:
    """Return the messages without reasoning, for a template that refuses it beside content."""
    return [dataclasses.replace(message, reasoning="") if message.reasoning else message for message in messages]


def folded(messages: Sequence[Message]) -> list[Message]:
    """Reshape a conversation for a strict template: at most one system message, first; then user and assistant alternate.

    Later system messages and tool results become user messages; neighbours of one role are joined by a blank line.
    """
    start = next((i for i, message in enumerate(messages) if message.role != "system"), len(messages))
    turns = [Message("assistant" if m.role == "assistant" else "user", written_out(m).content) for m in messages[start:]]
    if not turns or turns[0].role == "assistant":
        turns.insert(0, Message("user", ""))
    return _joined([*messages[:start], *turns])


def without_system(messages: Sequence[Message]) -> list[Message]:
    """Reshape as `folded` does, for a template without a system role: the system text opens the first user message."""
    head, *rest = folded(messages)
    return [head, *rest] if head.role != "system" else _joined([Message("user", head.content), *rest])


def written_out(message: Message) -> Message:
    """Return the message with its tool calls written into its text, in the generic format, for a template without calls."""
    if not message.tool_calls:
        return message
    written = (json.dumps({"name": c.name, "arguments": arguments(c)}, ensure_ascii=False) for c in message.tool_calls)
    calls = (f"<tool_call>\n{call}\n</tool_call>" for call in written)
    return dataclasses.replace(message, content="\n".join(filter(None, [message.content, *calls])), tool_calls=())


def arguments(call: ToolCall) -> Any:
    """Return a call's arguments as a JSON value, or as text if they are not valid JSON."""
    try:
        return json.loads(call.arguments)
    except ValueError:
        return call.arguments


def _joined(messages: Iterable[Message]) -> list[Message]:
    joined: list[Message] = []
    for message in messages:
        if joined and joined[-1].role == message.role:
            content = "\n\n".join(filter(None, [joined.pop().content, message.content]))
            message = Message(message.role, content)
        joined.append(message)
    return joined


def _message(field: str, raw: object) -> Message:
    if not isinstance(raw, Mapping):
        raise InvalidField(field, "expected an object with role and content")
    role = raw.get("role")
    if not isinstance(role, str) or role not in ROLES:
        reason = "is missing" if role is None else f"unknown role {role!r}; known: {', '.join(ROLES)}"
        raise InvalidField(f"{field}.role", reason)
    return Message(
        ROLES[role],
        _content(f"{field}.content", raw.get("content")),
        _text(f"{field}.name", raw.get("name")) or None,
        tuple(_calls(field, raw)) if role == "assistant" else (),
        _text(f"{field}.tool_call_id", raw.get("tool_call_id")) or None,
        next((raw[key] for key in REASONING_KEYS if isinstance(raw.get(key), str)), "") if role == "assistant" else "",
    )


def _content(field: str, raw: object) -> str:
    """Return the text of a message's content; the parts of a list are joined by newlines."""
    if not isinstance(raw, list):
        return _text(field, raw)
    texts = []
    for part in raw:
        if isinstance(part, str):
            texts.append(part)
            continue
        if not isinstance(part, Mapping):
            raise InvalidField(field, "expected text or a list of parts")
        kind = "text" if part.get("type") is None else part["type"]
        if kind in ("image_url", "input_image", "image"):
            raise InvalidField(field, "this model takes no images")
        if not isinstance(kind, str) or kind not in TEXT_PARTS:
            raise InvalidField(field, f"unsupported part type {kind!r}; known: {', '.join(TEXT_PARTS)}")
        texts.append(_text(field, part.get(TEXT_PARTS[kind])))
    return "\n".join(texts)


def _text(field: str, raw: object) -> str:
    if raw is None:
        return ""
    if not isinstance(raw, str):
        raise InvalidField(field, f"expected a string, got {type(raw).__name__}")
    return raw


def _calls(field: str, raw: Mapping[str, Any]) -> Iterable[ToolCall]:
    """Yield the calls of `tool_calls`, or the one of its predecessor `function_call`."""
    single = raw.get("function_call")
    calls = raw.get("tool_calls") or ([{"function": single}] if single else [])
    if not isinstance(calls, list):
        raise InvalidField(f"{field}.tool_calls", "expected a list")
    for index, call in enumerate(calls):
        where = f"{field}.tool_calls[{index}]"
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping):
            raise InvalidField(where, "expected an object with a function")
        value = function.get("arguments")
        text = value if isinstance(value, str) else json.dumps(value or {}, ensure_ascii=False)
        yield ToolCall(_text(f"{where}.id", call.get("id")), _text(f"{where}.function.name", function.get("name")), text)
