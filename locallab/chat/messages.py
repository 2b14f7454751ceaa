"""Messages of a conversation, neutral and checked: from what clients send, and into the shapes that strict templates take."""

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
"""Every role a client may send, and the one that templates know."""

TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
"""Types of content parts that hold text, and the key it is under."""

THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""Where clients send back what the assistant thought, each its own way; what is no text there is ignored."""


@dataclasses.dataclass(frozen=True, slots=True)
class ToolCall:
    """A call the assistant made earlier. `arguments` is JSON text, or whatever the model wrote instead."""

    id: str
    name: str
    arguments: str


@dataclasses.dataclass(frozen=True, slots=True)
class Message:
    """One message. `role` is system, user, assistant or tool; `tool_call_id` says which call a tool message answers.
    `reasoning` is what the assistant thought before it: templates take that of the turn that goes on."""

    role: str
    content: str
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    reasoning: str = ""


def normalize(messages: object, notes: list[str] | None = None) -> list[Message]:
    """Reads a client's `messages`: null counts as not set, unknown keys are ignored, roles may come in any order.

    What models could not read is mended, and `notes` says so: a call's arguments that are no JSON object, and a tool's result
    that answers no call. Raises InvalidField that names what is wrong, such as `messages[2].content`.
    """
    if not isinstance(messages, list):
        raise InvalidField("messages", "expected a list of messages" if messages is not None else "is missing")
    if not messages:
        raise InvalidField("messages", "is empty")
    read = [_message(f"messages[{index}]", message) for index, message in enumerate(messages)]
    return mended(read, [] if notes is None else notes)


def mended(messages: Sequence[Message], notes: list[str]) -> list[Message]:
    """The messages with what models could not read mended; adds a line to `notes` for each."""
    known: set[str] = set()
    whole: list[Message] = []
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if message.role == "tool" and message.tool_call_id not in known and (message.tool_call_id or not known):
            notes.append(f"{where}: a tool result that answers no call is taken for the user's words")
            message = Message("user", f"Result of {message.name or 'a tool'}: {message.content}")
        if message.tool_calls:
            known |= {call.id for call in message.tool_calls}
            calls = tuple(_mended_call(f"{where}.tool_calls[{i}]", call, notes) for i, call in enumerate(message.tool_calls))
            message = dataclasses.replace(message, tool_calls=calls)
        whole.append(message)
    return whole


def _mended_call(where: str, call: ToolCall, notes: list[str]) -> ToolCall:
    if isinstance(arguments(call), dict):
        return call
    notes.append(f"{where}: arguments that are no JSON object are put under the key 'raw'")
    return dataclasses.replace(call, arguments=json.dumps({"raw": call.arguments}, ensure_ascii=False))


def unthought(messages: Sequence[Message]) -> list[Message]:
    """The messages without what the assistant thought, for a template that takes it only beside nothing else."""
    return [dataclasses.replace(message, reasoning="") if message.reasoning else message for message in messages]


def folded(messages: Sequence[Message]) -> list[Message]:
    """The same conversation for a strict template: at most one system message, first; then user and assistant in turn.

    Later system messages and tool results become the user's; neighbours of one role are joined by a blank line.
    """
    start = next((i for i, message in enumerate(messages) if message.role != "system"), len(messages))
    turns = [Message("assistant" if m.role == "assistant" else "user", written_out(m).content) for m in messages[start:]]
    if not turns or turns[0].role == "assistant":
        turns.insert(0, Message("user", ""))
    return _joined([*messages[:start], *turns])


def without_system(messages: Sequence[Message]) -> list[Message]:
    """As `folded`, for a template that knows no system role: its text opens the first user message."""
    head, *rest = folded(messages)
    return [head, *rest] if head.role != "system" else _joined([Message("user", head.content), *rest])


def written_out(message: Message) -> Message:
    """The message with its tool calls in its text, as tools/generic.py asks for them, for a template that knows none."""
    if not message.tool_calls:
        return message
    written = (json.dumps({"name": c.name, "arguments": arguments(c)}, ensure_ascii=False) for c in message.tool_calls)
    calls = (f"<tool_call>\n{call}\n</tool_call>" for call in written)
    return dataclasses.replace(message, content="\n".join(filter(None, [message.content, *calls])), tool_calls=())


def arguments(call: ToolCall) -> Any:
    """A call's arguments as a JSON value; the text itself where it is no JSON."""
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
        next((raw[key] for key in THOUGHTS if isinstance(raw.get(key), str)), "") if role == "assistant" else "",
    )


def _content(field: str, raw: object) -> str:
    if not isinstance(raw, list):
        return _text(field, raw)
    return "\n".join(_part(field, part) for part in raw)


def _part(field: str, part: object) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        raise InvalidField(field, "expected text or a list of parts")
    kind = "text" if part.get("type") is None else part["type"]
    if kind in ("image_url", "input_image", "image"):
        raise InvalidField(field, "this model takes no images")
    if not isinstance(kind, str) or kind not in TEXT_PARTS:
        raise InvalidField(field, f"cannot take a part of type {kind!r}; known: {', '.join(TEXT_PARTS)}")
    return _text(field, part.get(TEXT_PARTS[kind]))


def _text(field: str, raw: object) -> str:
    if raw is None:
        return ""
    if not isinstance(raw, str):
        raise InvalidField(field, f"expected a string, got {type(raw).__name__}")
    return raw


def _calls(field: str, raw: Mapping[str, Any]) -> Iterable[ToolCall]:
    older = raw.get("function_call")
    calls = raw.get("tool_calls") or ([{"function": older}] if older else [])
    if not isinstance(calls, list):
        raise InvalidField(f"{field}.tool_calls", "expected a list")
    for index, call in enumerate(calls):
        where = f"{field}.tool_calls[{index}]"
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping):
            raise InvalidField(where, "expected an object with a function")
        given = function.get("arguments")
        written = given if isinstance(given, str) else json.dumps(given or {}, ensure_ascii=False)
        yield ToolCall(_text(f"{where}.id", call.get("id")), _text(f"{where}.function.name", function.get("name")), written)
