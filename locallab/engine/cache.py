"""The prefix cache's index: a radix tree of token prefixes over llama sequence ids. Pure; knows no llama.cpp.

A node is a run of tokens, and of the KV cells that hold them once computed. A sequence is a path from the root.
Sequences share a node only when the later one took its cells over with `attach`, so a node's sequences are its cells'
reference count. Two sequences that computed the same tokens each for itself have two nodes side by side.

A live sequence's tokens are in the tree before they are computed: `computed` tells how far its cells go. That is how a
request sees that another one is just computing its prefix. Only the last node of a path can be partly computed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

UNLIMITED = 1 << 62


@dataclasses.dataclass(eq=False, slots=True)
class Node:
    start: int
    tokens: list[int]
    parent: Node | None
    sequences: set[int]
    children: dict[int, list[Node]] = dataclasses.field(default_factory=dict)
    live: int = 0

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)


@dataclasses.dataclass(slots=True)
class Entry:
    leaf: Node
    computed: int = 0
    live: bool = True


@dataclasses.dataclass(frozen=True, slots=True)
class Match:
    """The first `length` tokens are those of `sequence`, which has computed `ready` of them."""

    sequence: int
    length: int
    ready: int


NO_MATCH = Match(-1, 0, 0)


class PrefixCache:
    """Which sequence holds which tokens. `rewind_limit` is the longest sequence that can be shared in part:
    unlimited for full attention, the window for sliding-window models, 0 for models with a running state.
    """

    def __init__(self, rewind_limit: int = UNLIMITED) -> None:
        self._root = Node(0, [], None, set())
        self._entries: dict[int, Entry] = {}
        self._cold: dict[int, None] = {}
        self._rewind_limit = rewind_limit
        self.used = 0
        self.cold_cells = 0

    def __contains__(self, sequence: int) -> bool:
        return sequence in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def cold(self) -> Iterator[int]:
        """The finished sequences, least recently used first."""
        return iter(self._cold)

    def computed(self, sequence: int) -> int:
        return self._entries[sequence].computed

    def tokens(self, sequence: int) -> list[int]:
        """All tokens of a sequence. Does not mutate."""
        found: list[int] = []
        for node in reversed(list(self._path(sequence))):
            found += node.tokens
        return found

    def match(self, tokens: list[int]) -> tuple[Match, Match]:
        """The sequences that share the longest prefix of `tokens`, at most all but the last: (computed, known).

        The first has the most tokens ready to be shared, the second the most tokens once it has computed them.
        Does not mutate.
        """
        ready = known = NO_MATCH
        stack = [(self._root, 0)]
        limit = len(tokens) - 1
        while stack:
            node, at = stack.pop()
            for child in node.children.get(tokens[at], ()) if at < limit else ():
                common = common_length(child.tokens, tokens, at, limit)
                for sequence in child.sequences:
                    found = self._shareable(sequence, at + common)
                    ready = found if found.ready > ready.ready else ready
                    known = found if found.length > known.length else known
                if common == len(child.tokens):
                    stack.append((child, child.end))
        return ready, known

    def private_cells(self, sequence: int) -> int:
        """Cells that `remove` would free. Does not mutate."""
        entry = self._entries[sequence]
        return sum(min(node.end, entry.computed) - node.start for node in self._path(sequence) if len(node.sequences) == 1)

    def cold_prefix(self, match: Match) -> int:
        """Cells of a match that no live sequence holds: they stop being evictable once shared. Does not mutate."""
        path = self._path(match.sequence) if match.ready else ()
        return sum(min(node.end, match.ready) - node.start for node in path if not node.live and node.start < match.ready)

    def add(self, sequence: int, tokens: list[int], match: Match = NO_MATCH) -> None:
        """Mutates: begins the live sequence `sequence` with `tokens`; the first `match.ready` of them are shared."""
        if sequence in self._entries:
            raise ValueError(f"sequence {sequence} is in use")
        node = self._split(match.sequence, match.ready) if match.ready else self._root
        self._entries[sequence] = Entry(node, match.ready)
        for step in self._path(sequence):
            step.sequences.add(sequence)
            self._enter(step)
        if match.sequence in self._cold:
            self._touch(match.sequence)
        self.extend(sequence, tokens[match.ready :])

    def extend(self, sequence: int, tokens: list[int]) -> None:
        """Mutates: appends tokens that are known but not computed."""
        if not tokens:
            return
        entry = self._entries[sequence]
        leaf = entry.leaf
        if leaf.parent is not None and len(leaf.sequences) == 1 and not leaf.children:
            leaf.tokens.extend(tokens)
            return
        child = Node(leaf.end, list(tokens), leaf, {sequence}, live=1)
        leaf.children.setdefault(tokens[0], []).append(child)
        entry.leaf = child

    def advance(self, sequence: int, count: int) -> None:
        """Mutates: the next `count` tokens of a live sequence are computed now, each in a cell of its own."""
        entry = self._entries[sequence]
        entry.computed += count
        self.used += count

    def finish(self, sequence: int) -> bool:
        """Mutates: a live sequence becomes a finished one, cut to what is computed.

        False when it is gone altogether: it had nothing that another sequence does not hold as well.
        """
        entry = self._entries[sequence]
        self._cut(entry)
        if self._is_covered(sequence):
            self.remove(sequence)
            return False
        entry.live = False
        for node in self._path(sequence):
            self._leave(node)
        self._cold[sequence] = None
        return True

    def remove(self, sequence: int) -> int:
        """Mutates: forgets a sequence, live or finished. Returns the number of cells that are free now."""
        entry = self._entries[sequence]
        self._cut(entry)
        freed = 0
        for node in list(self._path(sequence)):
            if entry.live:
                self._leave(node)
            node.sequences.discard(sequence)
            if not node.sequences:
                freed += len(node.tokens)
                self.cold_cells -= len(node.tokens)
                self._unlink(node)
        self.used -= freed
        del self._entries[sequence]
        self._cold.pop(sequence, None)
        return freed

    def check_integrity(self) -> None:
        """Raises AssertionError when the tree contradicts itself. For tests; does not mutate."""
        used = cold = 0
        stack = [self._root]
        while stack:
            node = stack.pop()
            for first, siblings in node.children.items():
                assert siblings, "an empty list of children was left"
                for child in siblings:
                    assert child.parent is node and child.start == node.end and child.tokens[0] == first
                    assert child.sequences, "a node without sequences was left"
                    assert child.live == sum(self._entries[s].live for s in child.sequences)
                    reach = max(self._entries[s].computed for s in child.sequences)
                    cells = max(0, min(child.end, reach) - child.start)
                    assert cells == len(child.tokens) or (len(child.sequences) == 1 and not child.children), (
                        "shared but not computed"
                    )
                    used += cells
                    cold += 0 if child.live else cells
                    stack.append(child)
        for sequence, entry in self._entries.items():
            path = list(self._path(sequence))
            assert all(sequence in node.sequences for node in path)
            assert entry.computed <= entry.leaf.end
            assert entry.live == (sequence not in self._cold)
            assert entry.live or entry.computed == entry.leaf.end
        assert (self.used, self.cold_cells) == (used, cold), f"counted {(self.used, self.cold_cells)}, found {(used, cold)}"

    def _shareable(self, sequence: int, length: int) -> Match:
        """What may be shared of `sequence` when its first `length` tokens match."""
        entry = self._entries[sequence]
        if self._rewind_limit < UNLIMITED:
            whole = entry.computed == length
            if entry.live or not (whole or entry.computed <= self._rewind_limit):
                return NO_MATCH
        return Match(sequence, length, min(length, entry.computed))

    def _path(self, sequence: int) -> Iterator[Node]:
        """The nodes of a sequence, leaf first, without the root."""
        node: Node | None = self._entries[sequence].leaf
        while node is not None and node.parent is not None:
            yield node
            node = node.parent

    def _split(self, sequence: int, length: int) -> Node:
        """The node of `sequence` that ends at `length`; mutates: cuts the one that spans it in two."""
        node = next(node for node in self._path(sequence) if node.start < length <= node.end)
        if node.end == length:
            return node
        head, tail = node.tokens[: length - node.start], node.tokens[length - node.start :]
        upper = Node(node.start, head, node.parent, set(node.sequences), {tail[0]: [node]}, node.live)
        siblings = node.parent.children[head[0]]  # type: ignore[union-attr]
        siblings[siblings.index(node)] = upper
        node.start, node.tokens, node.parent = length, tail, upper
        return upper

    def _cut(self, entry: Entry) -> None:
        """Drops the tokens that are not computed. They are all in the leaf, which then is the sequence's alone."""
        leaf = entry.leaf
        if entry.computed >= leaf.end:
            return
        if entry.computed > leaf.start:
            del leaf.tokens[entry.computed - leaf.start :]
        else:
            assert leaf.parent is not None
            entry.leaf = leaf.parent
            self._unlink(leaf)

    def _unlink(self, node: Node) -> None:
        parent = node.parent
        assert parent is not None
        siblings = parent.children[node.tokens[0]]
        siblings.remove(node)
        if not siblings:
            del parent.children[node.tokens[0]]

    def _is_covered(self, sequence: int) -> bool:
        """Whether another sequence holds every token of this one."""
        tokens = self.tokens(sequence)
        if not tokens:
            return True
        leaf = self._entries[sequence].leaf
        if any(self._covers(s, len(tokens)) for s in leaf.sequences if s != sequence):
            return True
        stack = [(self._root, 0)]
        while stack:
            node, at = stack.pop()
            for child in node.children.get(tokens[at], ()):
                common = common_length(child.tokens, tokens, at, len(tokens))
                others = [s for s in child.sequences if s != sequence]
                if at + common == len(tokens) and any(self._covers(s, len(tokens)) for s in others):
                    return True
                if common == len(child.tokens) and child.end < len(tokens):
                    stack.append((child, child.end))
        return False

    def _covers(self, sequence: int, length: int) -> bool:
        """Whether a sequence that has these `length` tokens can be shared up to there, now and later."""
        computed = self._entries[sequence].computed
        return computed >= length and (self._rewind_limit == UNLIMITED or computed == length)

    def _touch(self, sequence: int) -> None:
        del self._cold[sequence]
        self._cold[sequence] = None

    def _enter(self, node: Node) -> None:
        node.live += 1
        if node.live == 1:
            self.cold_cells -= len(node.tokens)

    def _leave(self, node: Node) -> None:
        node.live -= 1
        if node.live == 0:
            self.cold_cells += len(node.tokens)


def common_length(run: list[int], tokens: list[int], at: int, limit: int) -> int:
    """How many of `run`'s first tokens are those of tokens[at:limit]."""
    n = min(len(run), limit - at)
    if run[:n] == tokens[at : at + n]:
        return n
    return next(i for i in range(n) if run[i] != tokens[at + i])
