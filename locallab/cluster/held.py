"""The prefixes that a replica has, as digests: what it publishes to routers.

A request comes with the digests of its text. Once the engine has its prompt, each of them stands for a part of its tokens, and
counts for as long as the prefix cache has that part: the engine is asked, whenever something may have been evicted.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from locallab.cluster.prefixes import EDGES
from locallab.cluster.routing import Route

MOST = 2048
"""Digests that are published: 16 KiB, the last used ones."""

AT_ONCE = 64
"""Prompts that the engine is asked about at once: less than a millisecond of its thread."""

MOST_WAITS = 600
"""Times that the engine is asked about a prompt of which it has nothing yet."""

SLACK = 0.9
"""Share of the tokens up to an edge that the cache must have: their place in the prompt is known about."""


@dataclasses.dataclass(slots=True)
class Prompt:
    """A prompt of this owner in the engine, and the digests of its text, of `length` characters. `known` of its tokens are
    computed and in the cache, as far as was asked; `waits` counts the answers that there is nothing yet."""

    digests: tuple[int, ...]
    length: int
    tokens: list[int]
    owner: str
    known: int = 0
    waits: int = 0

    def held(self) -> Sequence[int]:
        """Return the digests whose tokens the cache has."""
        share = len(self.tokens) / max(1, self.length)
        edges = zip(self.digests, EDGES, strict=False)
        return [digest for digest, edge in edges if SLACK * edge * share <= self.known]


class Held:
    """Prompts by their last digest, the last used ones last. For one thread."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._prompts: OrderedDict[int, Prompt] = OrderedDict()
        self._digests: frozenset[int] = frozenset()
        self._changed = False
        self._asked = 0

    def add(self, route: Route, tokens: list[int], owner: str) -> None:
        """Take a prompt that the engine computes now, in place of those whose text it continues."""
        if not route.digests:
            return
        gone = [self._prompts.pop(digest) for digest in route.digests if digest in self._prompts]
        known = max((each.known for each in gone), default=0)
        self._prompts[route.digests[-1]] = Prompt(route.digests, route.length, tokens, owner, min(known, len(tokens)))

    def digests(self) -> frozenset[int]:
        """Return the digests to publish; forgets prompts for which there is no room."""
        if self._changed:
            found: dict[int, None] = {}
            for last, prompt in reversed(list(self._prompts.items())):
                if len(found) >= self._most:
                    del self._prompts[last]
                else:
                    found.update(dict.fromkeys(prompt.held()))
            self._digests, self._changed = frozenset(list(found)[: self._most]), False
        return self._digests

    def doubtful(self) -> list[Prompt]:
        """Return prompts to ask the engine about: at most AT_ONCE, those first of which it had nothing, the others in turns."""
        new = [each for each in self._prompts.values() if not each.known]
        if len(new) >= AT_ONCE:
            return new[:AT_ONCE]
        return new + self._others()[: AT_ONCE - len(new)]

    def _others(self) -> list[Prompt]:
        prompts = [each for each in self._prompts.values() if each.known]
        begin = self._asked if self._asked < len(prompts) else 0
        self._asked = begin + AT_ONCE
        return prompts[begin : begin + AT_ONCE]

    def learn(self, prompts: Iterable[Prompt], known: Iterable[int]) -> None:
        """Take the engine's answer: how many tokens of each prompt the cache has. Forgets those of which it has none any more,
        or none for a long time."""
        for prompt, count in zip(prompts, known, strict=True):
            count += count == len(prompt.tokens) - 1  # the last token is never taken from the cache
            lost = not count and (prompt.known or prompt.waits == MOST_WAITS)
            prompt.waits += not count
            if count != prompt.known:
                prompt.known, self._changed = count, True
            if lost and self._prompts.get(prompt.digests[-1]) is prompt:
                del self._prompts[prompt.digests[-1]]
