"""Neutral messages of a conversation: parsed from clients' JSON, and reshaped for strict templates."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from locallab.chat.blocks import BlockReader, described
from locallab.chat.json_text import dumps, loads
from locallab.errors import InvalidField
from locallab.media.intake import Intake

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
"""Roles that clients may send, with the one that templates know."""

REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
"""Keys under which clients return the assistant's reasoning; values that are not text are ignored."""

REASONING_LISTS = ("thinking_blocks", "reasoning_details")
"""Keys under which gateways return it as a list of blocks."""


@dataclasses.dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of the assistant. `arguments` is JSON text, or whatever the model wrote instead.

    In answers, that of a `custom` tool is its input, and `name` is the tool's own in its namespace.
    """

    id: str
    name: str
    arguments: str
    custom: bool = False
    namespace: str = ""


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


def parsed(messages: object, notes: list[str], *, past: bool = False, media: Intake | None = None) -> list[Message]:
    """Parse a client's `messages`: null counts as not set, unknown keys are ignored, roles may come in any order.

    Pictures and sounds go to `media`. Only the newest message may be refused, if it is the user's and not `past`: whatever else
    a model cannot be shown becomes text, which is added to `notes`. Raises InvalidField that names the field, such as
    `messages[2].content`, and MediaTooLarge for too many files in all.
    """
    if not isinstance(messages, list):
        raise InvalidField("messages", "expected a list of messages" if messages is not None else "is missing")
    if not messages:
        raise InvalidField("messages", "is empty")
    new = None if past else newest([each.get("role") if isinstance(each, Mapping) else None for each in messages])
    return [_message(f"messages[{i}]", message, BlockReader(notes, i == new, media)) for i, message in enumerate(messages)]


def with_system(messages: Sequence[Message], system: str | None) -> Sequence[Message]:
    """Put a system prompt in front of a conversation that has none."""
    if not system or any(message.role == "system" for message in messages):
        return messages
    return [Message("system", system), *messages]


def newest(roles: Sequence[object]) -> int | None:
    """Return the index of what the user has just said; None if the assistant or a tool has spoken since.

    System messages are passed over: some clients send one behind the user's.
    """
    last = next((i for i in reversed(range(len(roles))) if roles[i] not in ("system", "developer")), None)
    return None if last is None or roles[last] in ("assistant", "tool", "function") else last


def without_reasoning(messages: Sequence[Message]) -> list[Message]:
    """Return the messages without reasoning, for a template that refuses it beside content."""
    return [dataclasses.replace(message, reasoning="") if message.reasoning else message for message in messages]


def merged(messages: Sequence[Message]) -> list[Message]:
    """Join neighbours of one role by a blank line, for a template that refuses two of them; tool results stay apart.

    Later system messages become user messages.
    """
    groups: list[list[Message]] = []
    begun = False
    for message in messages:
        begun = begun or message.role != "system"
        if message.role == "system" and begun:
            message = Message("user", message.content)
        if groups and groups[-1][0].role == message.role != "tool":
            groups[-1].append(message)
        else:
            groups.append([message])
    return [_joined(group) if len(group) > 1 else group[0] for group in groups]


def _joined(group: Sequence[Message]) -> Message:
    return dataclasses.replace(
        group[0],
        content="\n\n".join(message.content for message in group if message.content),
        reasoning="\n\n".join(message.reasoning for message in group if message.reasoning),
        tool_calls=tuple(call for message in group for call in message.tool_calls),
    )


def short_ids(messages: Sequence[Message]) -> list[Message]:
    """Join as `merged`, and give all calls ids of nine letters and digits, for templates that refuse others."""
    short: dict[str, str] = {}

    def of(id: str) -> str:
        return short.setdefault(id, f"call{len(short):05}")

    found = []
    for message in merged(messages):
        calls = tuple(dataclasses.replace(call, id=of(call.id)) for call in message.tool_calls)
        answered = message.tool_call_id and of(message.tool_call_id)
        found.append(dataclasses.replace(message, tool_calls=calls, tool_call_id=answered))
    return found


def folded(messages: Sequence[Message]) -> list[Message]:
    """Reshape a conversation for a strict template: at most one system message, first; then user and assistant alternate.

    Later system messages and tool results become user messages; neighbours of one role are joined by a blank line.
    """
    start = next((i for i, message in enumerate(messages) if message.role != "system"), len(messages))
    turns = [Message("assistant" if m.role == "assistant" else "user", written_out(m).content) for m in messages[start:]]
    if not turns or turns[0].role == "assistant":
        turns.insert(0, Message("user", ""))
    return merged([*messages[:start], *turns])


def without_system(messages: Sequence[Message]) -> list[Message]:
    """Reshape as `folded` does, for a template without a system role: the system text opens the first user message."""
    head, *rest = folded(messages)
    return [head, *rest] if head.role != "system" else merged([Message("user", head.content), *rest])


def ended_by_user(messages: Sequence[Message]) -> list[Message]:
    """Reshape as `without_system` does, for a template that answers the user only: the last message is the user's."""
    shaped = without_system(messages)
    return [*shaped, Message("user", "")] if shaped[-1].role == "assistant" else shaped


def written_out(message: Message) -> Message:
    """Return the message with its tool calls written into its text, in the generic format, for a template without calls."""
    if not message.tool_calls:
        return message
    written = (dumps({"name": c.name, "arguments": arguments(c)}) for c in message.tool_calls)
    calls = (f"<tool_call>\n{call}\n</tool_call>" for call in written)
    return dataclasses.replace(message, content="\n".join(filter(None, [message.content, *calls])), tool_calls=())


def arguments(call: ToolCall) -> Any:
    """Return a call's arguments as a JSON value, or as text if they are not valid JSON, or nested too deeply."""
    try:
        return loads(call.arguments)
    except ValueError:
        return call.arguments


def _message(field: str, raw: object, reader: BlockReader) -> Message:
    if not isinstance(raw, Mapping):
        if reader.new:
            raise InvalidField(field, "expected an object with role and content")
        reader.notes.append(f"{field}: not an object; given as text")
        return Message("user", raw if isinstance(raw, str) else dumps(raw))
    role = raw.get("role")
    if not isinstance(role, str) or role not in ROLES:
        reason = "is missing" if role is None else f"unknown role {role!r}; known: {', '.join(ROLES)}"
        if reader.new:
            raise InvalidField(f"{field}.role", reason)
        reader.notes.append(f"{field}.role: {reason}; passed on as the user's")
        role = "user"
    if reader.new:
        _check_text(f"{field}.name", raw.get("name"))
    content = reader.read(f"{field}.content", raw.get("content"))
    if raw.get("images") and reader.media is not None:  # Ollama's clients send them beside the text
        content.texts = [*reader.images(f"{field}.images", raw["images"]), *content.texts]
    if role != "assistant":
        return Message(ROLES[role], content.whole, _id(raw.get("name")), tool_call_id=_id(raw.get("tool_call_id")))
    calls = tuple(_calls(field, raw, reader, content.texts))
    return Message(role, content.text, _id(raw.get("name")), calls, reasoning=content.reasoning or _reasoning(raw))


def _reasoning(raw: Mapping[str, Any]) -> str:
    """Return the reasoning that stands beside the content."""
    text = next((raw[key] for key in REASONING_KEYS if isinstance(raw.get(key), str) and raw[key]), "")
    if text:
        return text
    blocks: list[Any] = next((raw[key] for key in REASONING_LISTS if isinstance(raw.get(key), list)), [])
    values = (block.get(key) for block in blocks if isinstance(block, Mapping) for key in ("text", "thinking", "summary"))
    return "\n".join(value for value in values if isinstance(value, str))


def _id(raw: object) -> str | None:
    """Return a name or an id, which some clients send as a number."""
    return str(raw) or None if isinstance(raw, str | int) else None


def _check_text(field: str, raw: object) -> None:
    if raw is not None and not isinstance(raw, str):
        raise InvalidField(field, f"expected a string, got {type(raw).__name__}")


def _calls(field: str, raw: Mapping[str, Any], reader: BlockReader, texts: list[str]) -> Iterable[ToolCall]:
    """Yield the calls of `tool_calls`, or the one of its predecessor `function_call`; what is no call goes to `texts`."""
    single = raw.get("function_call")
    calls = raw.get("tool_calls") or ([{"function": single}] if single else [])
    for index, call in enumerate(calls if isinstance(calls, list) else [calls]):
        found = read_call(call)
        if found is None:
            reader.notes.append(f"{field}.tool_calls[{index}]: not a call of a function; given as text")
            texts.append(described(call))
        else:
            yield found


def read_call(call: object) -> ToolCall | None:
    """Read a call of a function, or of a custom tool, whose input is text; None for what is neither."""
    if not isinstance(call, Mapping):
        return None
    if isinstance(custom := call.get("custom"), Mapping):
        return ToolCall(_id(call.get("id")) or "", _id(custom.get("name")) or "", dumps({"input": custom.get("input") or ""}))
    function = call.get("function")
    if not isinstance(function, Mapping):
        return None
    return ToolCall(_id(call.get("id")) or "", _id(function.get("name")) or "", arguments_text(function.get("arguments")))


def arguments_text(raw: object) -> str:
    """Return a call's arguments as text: clients send them as text or as a value."""
    return raw if isinstance(raw, str) else dumps(raw or {})
