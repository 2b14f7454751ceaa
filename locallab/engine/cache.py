"""The prefix cache's index: a radix tree of token prefixes over llama sequence ids. Pure; calls no llama.cpp.

A node is a run of tokens and of the KV cells that hold them once computed. A sequence is a path from the root.
Sequences share a node only if the later one was added with a match, which shares the cells, so a node's sequences are its
cells' reference count. Two sequences that computed the same tokens independently have two nodes side by side.

A live sequence's tokens are in the tree before they are computed; `computed` is the number of tokens with cells. This shows a
request that another one is computing its prefix. Only the last node of a path can be partly computed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

UNLIMITED = 1 << 62


@dataclasses.dataclass(eq=False, slots=True)
class Node:
    """A run of tokens whose first has the position `start`. `live` counts the live ones of its sequences."""

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
    """A sequence: the last node of its path, its computed tokens, and False for `live` once it is finished."""

    leaf: Node
    computed: int = 0
    live: bool = True


@dataclasses.dataclass(frozen=True, slots=True)
class Match:
    """A prefix of `length` tokens that `sequence` shares, of which it has computed `ready`."""

    sequence: int
    length: int
    ready: int


NO_MATCH = Match(-1, 0, 0)


class PrefixCache:
    """Index of the tokens that each sequence holds. `used` counts KV cells, `cold_cells` those of no live sequence.

    `rewind_limit` is the length of the longest sequence that can be shared in part: unlimited for full attention, the window
    for sliding-window models, 0 for models with a running state.
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
        """Finished sequences, least recently used first."""
        return iter(self._cold)

    def computed(self, sequence: int) -> int:
        """Return the number of computed tokens of a sequence."""
        return self._entries[sequence].computed

    def tokens(self, sequence: int) -> list[int]:
        """Return all tokens of a sequence, computed or not."""
        return [token for node in reversed(list(self._path(sequence))) for token in node.tokens]

    def match(self, tokens: list[int]) -> tuple[Match, Match]:
        """Return the two best matches of a prefix of `tokens`, which is at most all but the last token.

        The first has the most computed tokens, the second the most tokens once they are computed.
        """
        ready = known = NO_MATCH
        stack = [(self._root, 0)]
        limit = len(tokens) - 1
        while stack:
            node, at = stack.pop()
            for child in node.children.get(tokens[at], ()) if at < limit else ():
                common = common_length(child.tokens, tokens, at, limit)
                for sequence in child.sequences:
                    candidate = self._shareable(sequence, at + common)
                    ready = candidate if candidate.ready > ready.ready else ready
                    known = candidate if candidate.length > known.length else known
                if common == len(child.tokens):
                    stack.append((child, child.end))
        return ready, known

    def private_cells(self, sequence: int) -> int:
        """Return the number of cells that `remove` would free."""
        entry = self._entries[sequence]
        return sum(min(node.end, entry.computed) - node.start for node in self._path(sequence) if len(node.sequences) == 1)

    def cold_prefix(self, match: Match) -> int:
        """Return the number of cells of a match that no live sequence holds: sharing makes them unevictable."""
        path = self._path(match.sequence) if match.ready else ()
        return sum(min(node.end, match.ready) - node.start for node in path if not node.live and node.start < match.ready)

    def add(self, sequence: int, tokens: list[int], match: Match = NO_MATCH) -> None:
        """Add a live sequence with `tokens`, sharing the first `match.ready`. Raises ValueError for an id in use."""
        if sequence in self._entries:
            raise ValueError(f"sequence {sequence} is in use")
        node = self._split(match.sequence, match.ready) if match.ready else self._root
        self._entries[sequence] = Entry(node, match.ready)
        for step in self._path(sequence):
            step.sequences.add(sequence)
            step.live += 1
            if step.live == 1:
                self.cold_cells -= len(step.tokens)
        if match.sequence in self._cold:  # the most recently used is last
            del self._cold[match.sequence]
            self._cold[match.sequence] = None
        self.extend(sequence, tokens[match.ready :])

    def extend(self, sequence: int, tokens: list[int]) -> None:
        """Append tokens that are not computed yet to a sequence."""
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
        """Count the next `count` tokens of a live sequence as computed, each in a cell of its own."""
        entry = self._entries[sequence]
        entry.computed += count
        self.used += count

    def finish(self, sequence: int) -> bool:
        """Turn a live sequence into a finished one, cut to its computed tokens.

        Returns False, and removes the sequence, when another one holds all of its tokens.
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
        """Remove a sequence, live or finished, and return the number of cells that this frees."""
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
        """Raise AssertionError when the tree contradicts itself; for tests."""
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
        """Return the part of `sequence` that may be shared when its first `length` tokens match."""
        entry = self._entries[sequence]
        if self._rewind_limit < UNLIMITED:
            whole = entry.computed == length
            if entry.live or not (whole or entry.computed <= self._rewind_limit):
                return NO_MATCH
        return Match(sequence, length, min(length, entry.computed))

    def _path(self, sequence: int) -> Iterator[Node]:
        """Yield the nodes of a sequence, leaf first, without the root."""
        node: Node | None = self._entries[sequence].leaf
        while node is not None and node.parent is not None:
            yield node
            node = node.parent

    def _split(self, sequence: int, length: int) -> Node:
        """Return the node of `sequence` that ends at `length`, splitting the one that spans it."""
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
        """Drop the tokens that are not computed. All are in the leaf, which no other sequence shares then."""
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
        """Return True if another sequence holds every token of this one."""
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
        """Return True if a sequence with the same `length` tokens can be shared up to there, now and later."""
        computed = self._entries[sequence].computed
        return computed >= length and (self._rewind_limit == UNLIMITED or computed == length)

    def _leave(self, node: Node) -> None:
        node.live -= 1
        if node.live == 0:
            self.cold_cells += len(node.tokens)


def common_length(run: list[int], tokens: list[int], at: int, limit: int) -> int:
    """Return the length of the common prefix of `run` and tokens[at:limit]."""
    n = min(len(run), limit - at)
    if run[:n] == tokens[at : at + n]:
        return n
    return next(i for i in range(n) if run[i] != tokens[at + i])
