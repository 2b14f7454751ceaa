"""How hard a model is to think, as clients of several dialects say it. No word is wrong: templates know few of them."""

from __future__ import annotations

from collections.abc import Mapping

from locallab.chat.turn import ReasoningOptions
from locallab.errors import InvalidField

SWITCHES = {"enabled": True, "adaptive": None, "disabled": False}

BUDGET = {"type": ["integer", "null"], "minimum": 1}
SWITCH = {
    "anyOf": [
        {"type": ["boolean", "null"]},
        {"type": "object", "properties": {"type": {"enum": [*SWITCHES]}, "budget_tokens": BUDGET}, "required": ["type"]},
    ]
}
"""What `of_switch` takes, as a JSON schema."""

WORDS = {"minimal": "low", "xhigh": "high", "max": "high"}
"""What templates are told instead of words that some clients have and they do not."""


def of_effort(effort: str | None, budget: int | None = None) -> ReasoningOptions:
    """None leaves it to the model, "none" is not at all."""
    if effort == "none":
        return ReasoningOptions(enabled=False, effort=effort)
    if effort is None:
        return ReasoningOptions(budget=budget)
    return ReasoningOptions(enabled=True, effort=WORDS.get(effort, effort), budget=budget)


def of_switch(raw: object, field: str = "thinking") -> ReasoningOptions:
    """`true`, `false`, or an object of a type and perhaps budget_tokens, as some services have it. Raises InvalidField."""
    if raw is None or isinstance(raw, bool):
        return ReasoningOptions(enabled=raw)
    kind = raw.get("type") if isinstance(raw, Mapping) else None
    if not isinstance(raw, Mapping) or not isinstance(kind, str) or kind not in SWITCHES:
        raise InvalidField(field, f"expected true, false or an object of a type, one of {', '.join(SWITCHES)}")
    budget = raw.get("budget_tokens")
    if budget is not None and (type(budget) is not int or budget < 1):
        raise InvalidField(f"{field}.budget_tokens", "expected a positive number of tokens")
    return ReasoningOptions(enabled=SWITCHES[kind], budget=budget)
