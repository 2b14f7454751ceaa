"""Stop strings as one automaton (Aho-Corasick): a character costs the same however many there are. Pure."""

from __future__ import annotations

import collections
from collections.abc import Iterable


class StopStrings:
    """The strings that end a text, each as a pair of itself and the form in which the text has it.

    A state is how much of which string the text ends with: 0 at the beginning, then what `step` returns. Immutable.
    """

    def __init__(self, forms: Iterable[tuple[str, str]]) -> None:
        self._next: list[dict[str, int]] = [{}]
        self._fail = [0]
        self.depth = [0]
        """The length of the longest beginning of a string that the text ends with, by state."""
        self.found: list[tuple[str, int] | None] = [None]
        """The string that is complete, if one is, and the length of its form, by state; of several the longest."""
        for stop, form in forms:
            if form:
                self._add(stop, form)
        self._link()

    def __bool__(self) -> bool:
        return len(self._next) > 1

    def step(self, state: int, character: str) -> int:
        """Return the state behind one more character."""
        while state and character not in self._next[state]:
            state = self._fail[state]
        return self._next[state].get(character, 0)

    def _add(self, stop: str, form: str) -> None:
        state = 0
        for character in form:
            if character not in self._next[state]:
                self._next[state][character] = len(self._next)
                self._next.append({})
                self._fail.append(0)
                self.depth.append(self.depth[state] + 1)
                self.found.append(None)
            state = self._next[state][character]
        self.found[state] = self.found[state] or (stop, len(form))

    def _link(self) -> None:
        """Let each state fall back to the longest other beginning that it ends with, the shorter states first."""
        waiting = collections.deque(self._next[0].values())
        while waiting:
            state = waiting.popleft()
            self.found[state] = self.found[state] or self.found[self._fail[state]]
            for character, child in self._next[state].items():
                self._fail[child] = self.step(self._fail[state], character)
                waiting.append(child)
