"""Reasoning effort and switches, in the forms that clients of several dialects send.

Any word is accepted as an effort: templates know few of them.
"""

from __future__ import annotations

from collections.abc import Mapping

from locallab.chat.turn import ReasoningOptions
from locallab.errors import InvalidField
from locallab.server.fields.body import whole

SWITCHES = {"enabled": True, "adaptive": None, "disabled": False}

BUDGET = {"type": ["integer", "null"], "minimum": 1}
SWITCH = {
    "anyOf": [
        {"type": ["boolean", "null"]},
        {"type": "object", "properties": {"type": {"enum": [*SWITCHES]}, "budget_tokens": BUDGET}, "required": ["type"]},
    ]
}
"""The JSON schema of what `of_switch` reads."""

WORDS = {"minimal": "low", "xhigh": "high", "max": "high"}
"""Words that templates know, in place of those that only some clients do."""


def of_effort(effort: str | None, budget: int | None = None) -> ReasoningOptions:
    """Read an effort: None leaves it to the model, "none" turns reasoning off."""
    if effort == "none":
        return ReasoningOptions(enabled=False, effort=effort)
    if effort is None:
        return ReasoningOptions(budget=budget)
    return ReasoningOptions(enabled=True, effort=WORDS.get(effort, effort), budget=budget)


def of_switch(raw: object, field: str = "thinking") -> ReasoningOptions:
    """Read `true`, `false`, or an object with a type and perhaps budget_tokens. Raises InvalidField."""
    if raw is None or isinstance(raw, bool):
        return ReasoningOptions(enabled=raw)
    kind = raw.get("type") if isinstance(raw, Mapping) else None
    if not isinstance(raw, Mapping) or not isinstance(kind, str) or kind not in SWITCHES:
        raise InvalidField(field, f"expected true, false or an object of a type, one of {', '.join(SWITCHES)}")
    budget = whole(raw.get("budget_tokens"))
    if budget is not None and (type(budget) is not int or budget < 1):
        raise InvalidField(f"{field}.budget_tokens", "expected a positive number of tokens")
    return ReasoningOptions(enabled=SWITCHES[kind], budget=budget)
