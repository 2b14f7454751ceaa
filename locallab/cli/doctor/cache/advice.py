"""The kind of change that makes two prompts part, and the advice for it."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

from locallab.chat.messages import REASONING_KEYS
from locallab.cli.doctor.cache.cause import MISSING, Field, same, shared, value

LISTS = ("messages", "input")
SYSTEM = ("system", "instructions")
REASONING_TYPES = ("thinking", "redacted_thinking", "reasoning")
RESULTS = ("tool_result", "function_call_output", "custom_tool_call_output")

MONTHS = (
    "(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?|nov(?:ember)?"
    r"|dec(?:ember)?)\b\.?"
)
TIME = re.compile(
    r"\d{4}-\d\d?-\d\d?(?:[T ]\d\d?:\d\d(?::\d\d)?)?|\d\d?[./]\d\d?[./]\d{2,4}|\d\d?:\d\d(?::\d\d)?(?: ?[ap]m)?"
    rf"|\d\d?\.? {MONTHS}(?: \d{{4}})?|\b{MONTHS} \d\d?(?:st|nd|rd|th)?(?:,? \d{{4}})?"
    r"|\b(?:mon|tues|wednes|thurs|fri|satur|sun)day\b",
    re.IGNORECASE,
)
IDENTIFIER = re.compile(r"\b(?=[\w-]*\d)[\w-]{8,}")
AROUND = 48
"""Characters on each side of a difference within which a date may begin or end."""


@dataclasses.dataclass(frozen=True, slots=True)
class Kind:
    """A kind of difference: what it is, and advice; None where nothing is to be done."""

    what: str
    advice: str | None


KINDS: Mapping[str, Kind] = {
    "same": Kind("the prompts are the same", None),
    "continued": Kind("one prompt begins with all of the other", None),
    "model": Kind("the bodies name different models", "a prefix is shared within one model only: name the same one"),
    "apis": Kind(
        "the bodies are those of different APIs, and their prompts differ",
        "compare two bodies of one API to learn the field",
    ),
    "several": Kind("several fields together", "change one field at a time, and compare again"),
    "time": Kind(
        "a date or time", "move it behind what stays the same: to the end of the system prompt, or into the last user message"
    ),
    "identifier": Kind(
        "an id or a number that changes", "leave it out, or move it behind what stays the same: into the last user message"
    ),
    "whitespace": Kind(
        "spaces and line breaks only", "send the text unchanged: trim and wrap it once, before it is first sent, or never"
    ),
    "keys": Kind("the same values in another order of keys", "write the keys in a fixed order, such as sorted"),
    "tools reordered": Kind("the same tools in another order", "send them in a fixed order, such as sorted by name"),
    "tools": Kind(
        "other tools",
        "send the same tools with every request, and restrict them with tool_choice where it can: allowed_tools",
    ),
    "system": Kind(
        "another system prompt",
        "keep the system prompt the same; put what changes at its end, or into the last user message",
    ),
    "reasoning": Kind(
        "reasoning that was dropped or edited",
        "send back the assistant's message as it was received, its reasoning included",
    ),
    "answer": Kind(
        "an answer of the assistant that was edited", "send back the assistant's message as it was received, with its calls"
    ),
    "result": Kind("a tool result that was edited", "send back each tool result as it was first sent; shorten it before that"),
    "history": Kind("an earlier message that was edited", "send back earlier messages as they were first sent"),
    "left out": Kind(
        "messages that one of them lacks",
        "drop or summarize old messages seldom and many at once, and raise the context where memory allows",
    ),
    "question": Kind("another message of the user, after which nothing can be shared", None),
    "ends": Kind("the shorter conversation ends here", None),
    "template": Kind(
        "messages that follow: the template writes earlier ones in another way once they do",
        "send back the assistant's reasoning if the model reasons; templates may leave out that of earlier turns, which no "
        "client can change",
    ),
    "options": Kind("an option that the template or the answer's format depends on", "send the same value with every request"),
    "prompt": Kind("another text", "put what changes at the end of the prompt"),
}
"""The kinds by name. Advice is for the client that sends the bodies."""


def kind_of(field: Field, a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    """Return the name of the kind of a difference at `field` of two bodies."""
    if not field:
        return "several"
    old, new = value(a, field), value(b, field)
    if MISSING not in (old, new) and old == new:
        return "keys"
    if field[0] == "tools":
        return "tools reordered" if _reordered(a.get("tools"), b.get("tools")) else "tools"
    if field[0] not in (*LISTS, *SYSTEM, "prompt"):
        return "options"
    change = _change(old, new)
    if change == "whitespace":
        return change
    if field[0] == "prompt":
        return change or "prompt"
    if field[0] in SYSTEM or "system" in _roles(field, a, b):
        return change or "system"
    if any(_is_reasoning(value(body, field[:length])) for body in (a, b) for length in range(2, len(field) + 1)):
        return "reasoning"
    if field[-1] in REASONING_KEYS:
        return "reasoning"
    return _of_message(field, a, b, change)


def _of_message(field: Field, a: Mapping[str, Any], b: Mapping[str, Any], change: str | None) -> str:
    """Return the kind of a difference in the conversation, behind the system prompt."""
    before, after = a[str(field[0])], b[str(field[0])]
    if not (isinstance(before, list) and isinstance(after, list)):
        return "question"
    if len(field) == 1:
        return "history"
    index = int(field[1])
    if index >= len(before):
        return "template"
    if index >= len(after):
        return "ends"
    if any(same(each, after[index]) for each in before[index + 1 :]) or any(
        same(each, before[index]) for each in after[index:]
    ):
        return "left out"
    roles = _roles(field, a, b)
    results = [value(body, field[:length]) for body in (a, b) for length in range(2, len(field) + 1)]
    if "tool" in roles or any(isinstance(each, Mapping) and each.get("type") in RESULTS for each in results):
        return change or "result"
    if roles == {"user"}:
        if index in (len(before) - 1, len(after) - 1):
            return "question"
        return change or ("history" if any(_role(each) == "user" for each in before[:index]) else "question")
    return "answer" if roles <= {"assistant", ""} else "history"


def _change(old: object, new: object) -> str | None:
    """Return the kind of change of a text, if the text alone tells it."""
    if not (isinstance(old, str) and isinstance(new, str)):
        return None
    if "".join(old.split()) == "".join(new.split()):
        return "whitespace"
    at = shared(old, new)
    for kind, pattern in (("time", TIME), ("identifier", IDENTIFIER)):
        if all(_covers(pattern, text, at) for text in (old, new)):
            return kind
    return None


def _covers(pattern: re.Pattern[str], text: str, at: int) -> bool:
    """Return whether a match of the pattern holds the character at this place, or ends right before it."""
    start = max(0, at - AROUND)
    return any(start + m.start() <= at <= start + m.end() for m in pattern.finditer(text[start : at + AROUND]))


def _reordered(a: object, b: object) -> bool:
    return isinstance(a, list) and isinstance(b, list) and _sorted(a) == _sorted(b)


def _sorted(tools: list[Any]) -> list[str]:
    return sorted(json.dumps(tool, sort_keys=True) for tool in tools)


def _roles(field: Field, a: Mapping[str, Any], b: Mapping[str, Any]) -> set[str]:
    """Return the roles of the message at `field` in the two bodies."""
    return {_role(each) for each in (value(body, field[:2]) for body in (a, b)) if isinstance(each, Mapping)}


def _role(message: object) -> str:
    role = str(message.get("role") or "") if isinstance(message, Mapping) else ""
    return {"developer": "system", "function": "tool"}.get(role, role)


def _is_reasoning(part: object) -> bool:
    return isinstance(part, Mapping) and part.get("type") in REASONING_TYPES
