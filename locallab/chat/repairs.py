"""Histories as models can read them: each tool result behind its call, and calls with arguments."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterator, Sequence

from locallab.chat.json_text import dumps
from locallab.chat.messages import Message, ToolCall, arguments, parsed
from locallab.media.intake import Intake


def normalize(
    messages: object, notes: list[str] | None = None, *, past: bool = False, media: Intake | None = None
) -> list[Message]:
    """Parse a client's `messages` as `parsed` does, and repair them. Raises InvalidField."""
    notes = [] if notes is None else notes
    return repaired(parsed(messages, notes, past=past, media=media), notes)


def repaired(messages: Sequence[Message], notes: list[str]) -> list[Message]:
    """Return the messages with everything that models could not read repaired; each repair adds a line to `notes`.

    Tool results are put behind their calls, in the order of those. Repaired are tool results that answer no call, several
    results of one call, and calls whose arguments are not a JSON object.
    """
    slots = _slots(messages)
    answering = {id(result) for of in slots.values() for slot in of for result in slot.results}
    found: list[Message] = []
    for index, message in enumerate(messages):
        if message.role == "tool" and id(message) not in answering:
            notes.append(f"messages[{index}]: the tool result answers no call; passed on as a user message")
            found.append(Message("user", f"Result of {message.name or 'a tool'}: {message.content}"))
        elif message.role != "tool":
            calls = tuple(_repaired(f"messages[{index}].tool_calls[{i}]", c, notes) for i, c in enumerate(message.tool_calls))
            found.append(dataclasses.replace(message, tool_calls=calls) if calls else message)
            found += _results(f"messages[{index}]", slots.get(index, ()), notes)
    order = [id(result) for of in slots.values() for slot in of for result in slot.results]
    if order != [id(each) for each in messages if id(each) in answering]:
        notes.append("messages: tool results are put behind their calls")
    return found


@dataclasses.dataclass(eq=False, slots=True)
class _Slot:
    """The place behind a call, with the results of that call."""

    call: ToolCall
    results: list[Message] = dataclasses.field(default_factory=list)


class _Open:
    """Calls that wait for a result, by their id or the name of their tool; None finds any."""

    def __init__(self, slots: Sequence[_Slot] = ()) -> None:
        self._waiting: dict[str | None, deque[_Slot]] = {}
        self.add(slots)

    def add(self, slots: Sequence[_Slot]) -> None:
        for slot in slots:
            for key in (None, f"id {slot.call.id}", f"name {slot.call.name}"):
                self._waiting.setdefault(key, deque()).append(slot)

    def first(self, key: str | None) -> _Slot | None:
        """Return the first that still waits. Mutates the queues, so that no slot is looked at twice."""
        waiting = self._waiting.get(key)
        while waiting and waiting[0].results:
            waiting.popleft()
        return waiting[0] if waiting else None


def _slots(messages: Sequence[Message]) -> dict[int, list[_Slot]]:
    """Return the calls of each message, by its index, with their results.

    A result belongs to the last call of its id; without an id, to the first call of the last message with calls that has no
    result yet, if possible one of its tool, or else the first of its tool in an earlier message.
    """
    found: dict[int, list[_Slot]] = {}
    known: dict[str, tuple[_Open, _Slot]] = {}  # by id, the last message with such a call
    early: dict[str, list[Message]] = {}  # by id, results ahead of their call
    last, every = _Open(), _Open()
    for index, message in enumerate(messages):
        if message.tool_calls:
            found[index] = [_Slot(call) for call in message.tool_calls]
            last = _Open(found[index])
            every.add(found[index])
            for slot in found[index]:
                if slot.call.id:
                    slot.results += early.pop(slot.call.id, ())
                    known[slot.call.id] = (last, slot)
        elif message.role == "tool" and message.tool_call_id:
            if message.tool_call_id in known:
                of, latest = known[message.tool_call_id]
                (of.first(f"id {message.tool_call_id}") or latest).results.append(message)
            else:
                early.setdefault(message.tool_call_id, []).append(message)
        elif message.role == "tool":
            tool = f"name {message.name}"
            if found_slot := last.first(tool) or every.first(tool) or last.first(None):
                found_slot.results.append(message)
    return found


def _results(field: str, slots: Sequence[_Slot], notes: list[str]) -> Iterator[Message]:
    """Yield a result for each call that has any."""
    for index, slot in enumerate(slots):
        if not slot.results:
            continue
        if len(slot.results) > 1:
            notes.append(f"{field}.tool_calls[{index}]: {len(slot.results)} results of one call are joined")
        first, content = slot.results[0], "\n".join(dict.fromkeys(result.content for result in slot.results))
        yield dataclasses.replace(first, content=content, tool_call_id=first.tool_call_id or slot.call.id or None)


def _repaired(field: str, call: ToolCall, notes: list[str]) -> ToolCall:
    if call.arguments.strip() in ("", "null"):  # how a stream of a call without arguments begins, and may end
        return dataclasses.replace(call, arguments="{}")
    if isinstance(arguments(call), dict):
        return call
    notes.append(f"{field}: the arguments are not a JSON object; put under the key 'raw'")
    return dataclasses.replace(call, arguments=dumps({"raw": call.arguments}))
