"""How hard a model is to think, as clients of several dialects say it. No word is wrong: templates know few of them."""

from __future__ import annotations

from locallab.chat.turn import Thinking

WORDS = {"minimal": "low", "xhigh": "high", "max": "high"}
"""What templates are told instead of words that some clients have and they do not."""


def of_effort(effort: str | None, budget: int | None = None) -> Thinking:
    """None leaves it to the model, "none" is not at all."""
    if effort == "none":
        return Thinking(enabled=False, effort=effort)
    if effort is None:
        return Thinking(budget=budget)
    return Thinking(enabled=True, effort=WORDS.get(effort, effort), budget=budget)
