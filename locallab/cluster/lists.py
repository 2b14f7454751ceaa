"""Lists of models, put together from what the replicas of each model say. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def merged(answers: Mapping[str, Any], own: Any, models: Sequence[str]) -> Any:
    """Return one answer with the lists of all. `answers` are those of a replica of each model, `own` the front's; None is a
    failure. What a model's own replica says of it counts, then what others say of it, then what the front says of those of the
    cluster's `models` that have no replica now."""
    whole = next((each for each in (*answers.values(), own) if isinstance(each, dict)), None)
    if whole is None:
        return own
    lists = [name for name, value in whole.items() if isinstance(value, list)]
    return {**whole, **{name: _together(name, answers, own, models) for name in lists}}


def _together(name: str, answers: Mapping[str, Any], own: Any, models: Sequence[str]) -> list[Any]:
    found: dict[str, Any] = {}
    for model, answer in answers.items():
        found |= {id: entry for id, entry in _entries(answer, name) if id == model}
    for answer in answers.values():
        for id, entry in _entries(answer, name):
            found.setdefault(id, entry)
    for id, entry in _entries(own, name):
        if id in models:
            found.setdefault(id, entry)
    return list(found.values())


def _entries(answer: Any, name: str) -> list[tuple[str, Any]]:
    """Return the entries of a list with the ids of their models."""
    entries = answer.get(name, []) if isinstance(answer, dict) else []
    return [(str(each.get("id") or each.get("name")).removesuffix(":latest"), each) for each in entries]
