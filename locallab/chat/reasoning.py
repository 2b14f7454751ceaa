"""Reasoning between tags, ahead of a model's answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from locallab.chat.deltas import Delta, Reasoning, Text, held_back
from locallab.chat.json_scanner import SPACE


@dataclasses.dataclass(frozen=True, slots=True)
class Tags:
    """Tags around reasoning. `label` is text that belongs to the opening tag but is not a control token."""

    begin: str
    end: str
    label: str = ""

    @property
    def opening(self) -> str:
        return self.begin + self.label


TAGS: Sequence[Tags] = (
    Tags("<think>", "</think>"),
    Tags("[THINK]", "[/THINK]"),
    Tags("<seed:think>", "</seed:think>"),
    Tags("<|START_THINKING|>", "<|END_THINKING|>"),
    Tags("<|channel>", "<channel|>", "thought"),
)


def tags_of(template: str) -> Tags | None:
    """Return the reasoning tags of a model with this chat template; None if it does not reason."""
    return next((tags for tags in TAGS if tags.end in template), None)


class ThinkParser:
    """Split an answer into reasoning and text, without the white space around reasoning.

    With `open` the prompt has opened the reasoning; otherwise only an answer that begins with the tag has any.
    """

    def __init__(self, tags: Tags, open: bool) -> None:
        self._tags = tags
        self._state = "reasoning" if open else "start"
        self._buffer = ""
        self._fresh = True  # no reasoning has been yielded yet: leading white space is dropped

    def feed(self, text: str) -> list[Delta]:
        self._buffer += text
        return list(self._run())

    def finish(self) -> list[Delta]:
        deltas = list(self._run())
        rest, self._buffer = self._buffer, ""
        if self._state == "reasoning":
            rest = rest.rstrip(SPACE)
            return deltas + ([Reasoning(rest)] if rest else [])
        return deltas + ([Text(rest)] if rest else [])

    def _run(self) -> Iterator[Delta]:
        if self._state == "start":
            bare = self._buffer.lstrip(SPACE)
            if bare.startswith(self._tags.opening):
                self._state, self._buffer = "reasoning", bare[len(self._tags.opening) :]
            elif not self._tags.opening.startswith(bare):
                self._state = "text"
        if self._state == "reasoning":
            yield from self._reason()
        if self._state == "gap":
            self._buffer = self._buffer.lstrip(SPACE)
            self._state = "text" if self._buffer else "gap"
        if self._state == "text" and self._buffer:
            text, self._buffer = self._buffer, ""
            yield Text(text)

    def _reason(self) -> Iterator[Delta]:
        if self._fresh:
            self._buffer = self._buffer.lstrip(SPACE)
        at = self._buffer.find(self._tags.end)
        if at >= 0:
            text, self._buffer = self._buffer[:at].rstrip(SPACE), self._buffer[at + len(self._tags.end) :]
            self._state = "gap"
        else:
            cut = len(self._buffer) - held_back(self._buffer, self._tags.end)
            text = self._buffer[:cut].rstrip(SPACE)  # trailing white space waits: it may end the reasoning
            self._buffer = self._buffer[len(text) :]
        if text:
            self._fresh = False
            yield Reasoning(text)
