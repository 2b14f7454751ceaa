"""The comparison of two requests: what their prompts share, and the field at which they part."""

from __future__ import annotations

import dataclasses
from typing import Any

from locallab.cli.doctor.cache.advice import KINDS, Kind, kind_of
from locallab.cli.doctor.cache.cause import changes, find, shared, written
from locallab.cli.doctor.cache.prompts import Body, VocabularyModel
from locallab.errors import RequestError
from locallab.server.inference.prompt import Prompt

EXCERPT = 12
"""Tokens of each prompt that are shown before the place where they part, and from there on."""


@dataclasses.dataclass(frozen=True, slots=True)
class Comparison:
    """`tokens` are the lengths of the prompts, and `shared` that of their common prefix.

    `field` is where the bodies differ at the end of that; None if nothing differs there, or no single field does. `before` is
    the text that both share last, `after` what follows in each. `harmless` are fields that differ and change no prompt.
    """

    tokens: tuple[int, int]
    shared: int
    kind: str
    field: str | None = None
    before: str = ""
    after: tuple[str, str] = ("", "")
    harmless: tuple[str, ...] = ()

    @property
    def explained(self) -> Kind:
        return KINDS[self.kind]


def compare(model: VocabularyModel, paths: tuple[str, str], bodies: tuple[Body, Body]) -> Comparison:
    """Compare two bodies, each sent to its path. Raises RequestError for one that its route refuses."""
    texts = [model.text(path, body) for path, body in zip(paths, bodies, strict=True)]
    (path, other), (a, b) = paths, bodies
    tokens = [model.tokens(text) for text in texts]
    same, at = shared(*tokens), shared(*texts)
    lengths = (len(tokens[0]), len(tokens[1]))

    def text(body: Any) -> Prompt | None:
        try:
            return model.text(path, body)
        except RequestError:  # the parts of two bodies make no valid one
            return None

    def parts_here(body: Any) -> bool:
        changed = text(body)
        return changed is not None and shared(changed, texts[0]) == at

    harmless = tuple(str(key) for key, changed in changes(a, b) if path == other and text(changed) == texts[0])
    if at == min(map(len, texts)):
        return Comparison(lengths, same, "same" if texts[0] == texts[1] else "continued", harmless=harmless)
    before, *after = (
        model.engine.detokenize(each[start : start + EXCERPT])
        for each, start in ((tokens[0][:same], max(0, same - EXCERPT)), (tokens[0], same), (tokens[1], same))
    )
    comparison = Comparison(lengths, same, "apis", None, before, (after[0], after[1]), harmless)
    if path != other:
        return comparison
    field = find(a, b, parts_here)
    kind = kind_of(field, a, b)
    named = field[:2] if kind == "left out" else field  # the message, for the next one differs in all it has
    return dataclasses.replace(comparison, kind=kind, field=written(named) or None)
