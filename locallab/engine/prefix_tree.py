"""A radix tree of token prefixes and of their states in host RAM and on disk, each token's once. Pure.

A node is a run of tokens. The state of a token is a row (`StateFormat`); of a model whose memory cannot be cut there is besides
a fixed part, which belongs to the node's end alone: only there the prefix can be taken up.

Prefixes belong to owners, who see none of each other's. All share what is as long as it begins one of the `public` prompts:
where a prompt of an owner leaves these, its edge, the tree branches by owner and token. The owner "" has no edge.
An owner may end with the mark of adapters (`adapters.mark`): each set of them has a tree of its own, so to speak.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Iterator
from collections.abc import Sequence as Seq

import numpy as np

from locallab.engine.adapters import mark, person
from locallab.engine.record import Record
from locallab.engine.state_format import Bytes, Rows

NEGLIGIBLE = 8
"""Tokens that are not worth a wait or a restore."""

FORGET = 1 << 18
"""Tokens of prefixes without any state that the tree remembers, to tell what was evicted from what is new."""

Key = int | tuple[str, int]
"""What leads to a node: its first token; at an edge with the owner, at the root with the mark of adapters."""

NO_EDGE = -1


@dataclasses.dataclass(eq=False, slots=True)
class Node:
    """A run of tokens whose first has the position `start`, below its parent by the `key`. `slots` are the resident sequences
    that reach into it, by their ids. `rows` and `fixed` lie in host RAM, `rows_on` and `fixed_on` are the records that have
    them on disk."""

    start: int
    tokens: list[int]
    parent: Node | None
    key: Key = -1
    slots: dict[int, Entry] = dataclasses.field(default_factory=dict)
    children: dict[Key, Node] = dataclasses.field(default_factory=dict)
    rows: Rows | None = None
    fixed: Bytes | None = None
    rows_on: Record | None = None
    fixed_on: Record | None = None

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)

    @property
    def has_rows(self) -> bool:
        return self.rows is not None or self.rows_on is not None

    @property
    def has_fixed(self) -> bool:
        return self.fixed is not None or self.fixed_on is not None

    @property
    def n_bytes(self) -> int:
        """Bytes in host RAM."""
        return sum(part.nbytes for part in (self.rows, self.fixed) if part is not None)

    @property
    def is_bare(self) -> bool:
        """True if no state of these tokens is anywhere."""
        return not (self.slots or self.has_rows or self.has_fixed)


@dataclasses.dataclass(slots=True)
class Entry:
    """A resident sequence: the last node of its path, its known and computed tokens, False for `live` once finished, and its
    owner and edge, as far as its tokens are known."""

    leaf: Node
    length: int = 0
    computed: int = 0
    live: bool = True
    owner: str = ""
    edge: int = NO_EDGE


NOTHING: Bytes = np.empty(0, np.uint8)


class PrefixTree:
    """`cuts`: the state of a prefix can be cut anywhere, else only at a node's end. `capacity`, `size`: bytes in host RAM."""

    def __init__(self, *, cuts: bool, capacity: int) -> None:
        self.cuts = cuts
        self.capacity = capacity
        self.size = 0
        self.public: tuple[list[int], ...] = ()
        self._root = Node(0, [], None)
        self._in_ram: OrderedDict[Node, None] = OrderedDict()  # with what would be dropped first; least recently used first
        self._bare: OrderedDict[Node, None] = OrderedDict()
        self._n_bare = 0

    def stored(self, tokens: list[int], owner: str = "") -> int:
        """Return how many of the first `tokens` have rows in host RAM or on disk."""
        path, common = self._descend(tokens, len(tokens), owner)
        return self._rows(path, common)

    def unsaved(self, tokens: list[int], owner: str = "") -> int:
        """Return how many tokens a snapshot of exactly these would add; those of a state that cannot be cut count whole."""
        path, common = self._descend(tokens, len(tokens), owner)
        if self.cuts:
            return len(tokens) - self._rows(path, common)
        has_all = common == len(tokens) == self._rows(path, common) and path[-1].end == common and path[-1].has_fixed
        return 0 if has_all else len(tokens)

    def snapshot(self, tokens: list[int], start: int, end: int, owner: str = "") -> tuple[list[Rows], Bytes] | None:
        """Return the rows of tokens [start, end) and what is fixed at `end`, nothing where states can be cut; None unless all
        of it is in host RAM."""
        path, common = self._descend(tokens, end, owner)
        if common < end or any(node.rows is None for node in path):
            return None
        rows = [node.rows[max(0, start - node.start) : end - node.start] for node in path if node.end > start]  # type: ignore[index]
        if self.cuts:
            return rows, NOTHING
        last = path[-1]
        return (rows, last.fixed) if last.end == end and last.fixed is not None else None

    def missing(self, tokens: list[int], end: int, owner: str = "") -> list[Record]:
        """Return the records to be read before `snapshot` of the first `end` tokens has all it needs."""
        path, _ = self._descend(tokens, end, owner)
        wanted = [node.rows_on for node in path if node.rows is None]
        if path and not self.cuts and path[-1].fixed is None:
            wanted.append(path[-1].fixed_on)
        return list(dict.fromkeys(record for record in wanted if record is not None))

    def record(self, tokens: list[int], end: int, owner: str = "") -> Record | None:
        """Return the record on disk that ends a snapshot of the first `end` tokens, if there is one."""
        path, _ = self._descend(tokens, end, owner)
        return (path[-1].fixed_on or path[-1].rows_on) if path else None

    def store(self, tokens: list[int], start: int, rows: Rows, fixed: Bytes, owner: str = "") -> None:
        """Keep the rows of tokens[start:] in host RAM, and what is fixed at their end, unless they are larger than it.

        The least recently used ones make room. Rows that are there already are not kept twice.
        """
        if rows.nbytes + fixed.nbytes > self.capacity:
            return
        path = self._nodes(tokens, start, owner)
        for node in path:
            if node.rows is None and node.start >= start:
                self._set(node, rows[node.start - start : node.end - start].copy(), node.fixed)
        if not self.cuts:
            self._set(path[-1], path[-1].rows, fixed)
        for node in path:
            self._tidy(node)
        self._touch(path[-1])
        self._make_room()

    def recorded(self, record: Record) -> None:
        """Remember what a record on disk has."""
        path = self._nodes(record.tokens.tolist(), record.start, record.owner)
        for node in path:
            if node.start >= record.start:
                node.rows_on = node.rows_on or record
        if not self.cuts:
            path[-1].fixed_on = record
        for node in path:
            self._tidy(node)

    def lost(self, record: Record) -> None:
        """Forget a record that is gone or was damaged."""
        path, _ = self._descend(record.tokens.tolist(), len(record.tokens), record.owner)
        for node in reversed(path):
            node.rows_on = None if node.rows_on is record else node.rows_on
            node.fixed_on = None if node.fixed_on is record else node.fixed_on
            self._tidy(node)

    def drop(self, tokens: list[int], owner: str = "") -> None:
        """Forget what is stored of the last token's node: it could not be put back."""
        path, _ = self._descend(tokens, len(tokens), owner)
        for node in reversed(path[-1:]):
            node.rows_on = node.fixed_on = None
            self._free(node)

    def use_stored(self, tokens: list[int], length: int, owner: str = "") -> None:
        """Mark the snapshot of the first `length` tokens as the most recently used one."""
        path, _ = self._descend(tokens, length, owner)
        if path:
            self._touch(path[-1])

    # Inside

    def edge(self, tokens: list[int], owner: str) -> int:
        """Return how many of the first `tokens` begin a public prompt; NO_EDGE for the owner of whom all is public."""
        return max((common_length(prompt, tokens) for prompt in self.public), default=0) if person(owner) else NO_EDGE

    def _descend(self, tokens: list[int], limit: int, owner: str) -> tuple[list[Node], int]:
        """Return the nodes that hold the first tokens, the last perhaps in part, and how many tokens they hold."""
        path: list[Node] = []
        node, at, edge = self._root, 0, self.edge(tokens, owner)
        while at < limit and (child := node.children.get(key_of(owner, tokens[at], at, edge))):
            path.append(child)
            at += common_length(child.tokens, tokens, 0, at, edge if at < edge < limit else limit)
            if at < child.end:
                break
            node = child
        return path, at

    def _append(self, above: Node, tokens: list[int], edge: int, owner: str) -> Node:
        """Add a node of tokens behind another, which has no such node yet."""
        key = key_of(owner, tokens[0], above.end, edge)
        child = above.children[key] = Node(above.end, tokens, above, key)
        return child

    def _rows(self, path: list[Node], common: int) -> int:
        for node in path:
            if not node.has_rows:
                return node.start
        return common

    def _stored(self, path: list[Node], common: int) -> tuple[int, bool]:
        length = self._rows(path, common)
        if not self.cuts:
            ends = (node.end for node in reversed(path) if node.end <= length and node.has_fixed)
            length = next(ends, 0)
        needed = [node for node in path if node.start < length]
        on_disk = any(node.rows is None for node in needed)
        return length, on_disk or bool(needed and not self.cuts and needed[-1].fixed is None)

    def _nodes(self, tokens: list[int], start: int, owner: str) -> list[Node]:
        """Return the nodes of exactly these tokens, none across position `start`; make or split those that are missing."""
        path, common = self._descend(tokens, len(tokens), owner)
        if common < len(tokens):
            if path and common < path[-1].end:
                path[-1] = self._split(path[-1], common)
            above, edge = path[-1] if path else self._root, self.edge(tokens, owner)
            if common < edge < len(tokens):
                above = self._append(above, tokens[common:edge], edge, owner)
            self._append(above, tokens[above.end :], edge, owner)
        for end in (start, len(tokens)):
            path, _ = self._descend(tokens, end, owner)
            if path and path[-1].end > end:
                self._split(path[-1], end)
        path, _ = self._descend(tokens, len(tokens), owner)
        for node in path:
            self._forget_bare(node)
        return path

    def _split(self, node: Node, at: int) -> Node:
        """Cut a node in two before position `at`, and return the upper one."""
        n = at - node.start
        upper = Node(node.start, node.tokens[:n], node.parent, node.key, dict(node.slots), {node.tokens[n]: node})
        upper.rows_on = node.rows_on
        bare = node in self._bare
        self._forget_bare(node)
        if node.rows is not None:
            upper.rows, node.rows = node.rows[:n].copy(), node.rows[n:].copy()
        assert node.parent is not None
        node.parent.children[node.key] = upper
        node.start, node.tokens, node.parent, node.key = at, node.tokens[n:], upper, node.tokens[n]
        for slot, entry in upper.slots.items():
            if entry.length <= at:
                del node.slots[slot]
                entry.leaf = upper
        if node in self._in_ram and self.cuts:
            self._in_ram[upper] = None
            self._touch(node)
        if bare:
            self._tidy(upper)
        self._tidy(node)
        return upper

    def _set(self, node: Node, rows: Rows | None, fixed: Bytes | None) -> None:
        self.size -= node.n_bytes
        node.rows, node.fixed = rows, fixed
        self.size += node.n_bytes
        if (rows if self.cuts else fixed) is not None:
            self._in_ram[node] = None

    def _touch(self, node: Node) -> None:
        """Mark as used. Where rows are dropped one by one, those of a prefix must be dropped after what needs them."""
        for each in path_of(node) if self.cuts else (node,):
            if each in self._in_ram:
                self._in_ram.move_to_end(each)

    def _make_room(self) -> None:
        while self.size > self.capacity and self._in_ram:
            self._free(next(iter(self._in_ram)))

    def _free(self, node: Node) -> None:
        """Drop what a node has in host RAM, and rows above that nothing needs any more."""
        self._in_ram.pop(node, None)
        self._set(node, None if self.cuts else node.rows, None)
        self._tidy(node)
        if not self.cuts:
            self._free_rows(node)

    def _free_rows(self, node: Node | None) -> None:
        while node is not None and node is not self._root and node.fixed is None:
            if any(child.rows is not None for child in node.children.values()):
                return
            self._set(node, None, None)
            above = node.parent
            self._tidy(node)
            node = above

    def _tidy(self, node: Node) -> None:
        """Unlink a node without any state, or remember it for a while as one that was evicted."""
        if not node.is_bare or node is self._root or node in self._bare:
            return
        self._bare[node] = None
        self._n_bare += len(node.tokens)
        if self._n_bare > FORGET:
            for old in [old for old in self._bare if not old.children and old is not node]:  # the caller may go on with it
                if self._n_bare <= FORGET:
                    return
                self._unlink(old)

    def _forget_bare(self, node: Node) -> None:
        if node in self._bare:
            del self._bare[node]
            self._n_bare -= len(node.tokens)

    def _unlink(self, node: Node) -> None:
        self._forget_bare(node)
        assert node.parent is not None
        del node.parent.children[node.key]


def first_edge(owner: str) -> int:
    """Return the edge of an owner's prompt of which no token is known."""
    return 0 if person(owner) else NO_EDGE


def key_of(owner: str, token: int, at: int, edge: int) -> Key:
    """Return what leads to the node of an owner's token at position `at`: prompts with different adapters part at once."""
    if at == edge:
        return owner, token
    adapters = "" if at else mark(owner)
    return (adapters, token) if adapters else token


def path_of(node: Node | None) -> Iterator[Node]:
    """Yield a node and those above it, without the root."""
    while node is not None and node.parent is not None:
        yield node
        node = node.parent


def common_length(run: Seq[object], tokens: Seq[object], start: int = 0, at: int = 0, limit: int | None = None) -> int:
    """Return the length of the common prefix of run[start:] and tokens[at:limit]."""
    n = min(len(run) - start, (len(tokens) if limit is None else limit) - at)
    if run[start : start + n] == tokens[at : at + n]:
        return n
    same, differs = 0, n
    while differs - same > 1:
        middle = (same + differs) // 2
        if run[start + same : start + middle] == tokens[at + same : at + middle]:
            same = middle
        else:
            differs = middle
    return same
