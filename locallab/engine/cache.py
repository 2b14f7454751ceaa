"""The prefix cache's index: one radix tree of token prefixes, wherever their state lies. Pure; calls no llama.cpp.

The state of a prefix may lie in sequences of the KV cache, running or finished ("resident"), in host RAM, on disk, or nowhere
any more. `PrefixTree` keeps what is stored; here is what is resident, and what a prompt can have of both.

A running sequence's tokens are in the tree before they are computed. This shows a request that another computes its prefix.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Seq

from locallab.engine.limits import Limits
from locallab.engine.media.runs import Run, uncut
from locallab.engine.prefix_tree import (
    NEGLIGIBLE,
    Entry,
    Key,
    Node,
    PrefixTree,
    common_length,
    first_edge,
    key_of,
    path_of,
)
from locallab.engine.request import CacheUse, MissReason, Tier


@dataclasses.dataclass(frozen=True, slots=True)
class Match:
    """The parts of a prompt that the cache has.

    `resident`: tokens in the sequence `slot`, which is running or finished; `live`: those in any running one. `finished`:
    tokens in the finished sequence `finished_slot`, to be taken over with them. `stored`: tokens in host RAM or on disk;
    `on_disk`: some must be read first. `known`: tokens that the running sequence `source` has or will have. `held`: tokens of
    which there is any state. `common`: tokens that were ever seen; `continued`: and were followed by others than the prompt's.
    """

    resident: int = 0
    slot: int = -1
    live: int = 0
    finished: int = 0
    finished_slot: int = -1
    stored: int = 0
    on_disk: bool = False
    known: int = 0
    source: int = -1
    held: int = 0
    common: int = 0
    continued: bool = False

    def at_once(self, shares: bool) -> int:
        """Return the tokens that a new sequence can have without a restore."""
        return self.resident if shares else self.finished

    def uncut(self, runs: Seq[Run], cuts: bool) -> Match:
        """Return the match without parts of a picture. Where a state cannot be cut (not `cuts`), nothing is left of one that
        ends in a picture."""
        if not runs:
            return self

        def least(length: int) -> int:
            whole = uncut(runs, length)
            return whole if cuts or whole == length else 0

        return dataclasses.replace(
            self,
            resident=least(self.resident),
            live=least(self.live),
            finished=least(self.finished),
            stored=least(self.stored),
            held=least(self.held),
            known=uncut(runs, self.known),
            common=uncut(runs, self.common),
        )

    def use(self, hit: int, total: int, limits: Limits, fetched: bool) -> CacheUse:
        """Return what a prompt of `total` tokens that got `hit` is told; `fetched`: they came from disk."""
        tier: Tier = "resident" if hit == self.at_once(limits.shares) else "disk" if fetched else "host"
        reason, at = self.why(hit, total, limits.cuts)
        return CacheUse(hit, total, tier if hit else "none", reason, at)

    def why(self, hit: int, total: int, cuts: bool) -> tuple[MissReason, int]:
        """Return why a prompt of `total` tokens got no more than `hit`, and where that shows, as CacheUse has them."""
        if hit >= total - 1 or (self.common and hit >= self.common and not self.continued):
            return "end", hit
        if self.common < NEGLIGIBLE:
            return "first time", hit
        if hit > self.common - NEGLIGIBLE:
            return "diverged", self.common
        return ("no snapshot", self.common) if not cuts and self.held > hit else ("evicted", hit)


NO_MATCH = Match()


class PrefixCache(PrefixTree):
    """The tree with the resident sequences. `shares`: these share cells, so that tokens in several are held once."""

    def __init__(self, *, cuts: bool = True, shares: bool = True, capacity: int = 0) -> None:
        super().__init__(cuts=cuts, capacity=capacity)
        self.shares = shares
        self.used = 0
        self._entries: dict[int, Entry] = {}
        self._finished: OrderedDict[int, None] = OrderedDict()
        self._cold: int | None = 0
        self.counted_cold = 0  # what `cold_cells` was last: other threads may read it, but must not count

    def __contains__(self, slot: int) -> bool:
        return slot in self._entries

    @property
    def finished(self) -> Iterator[int]:
        """The slots of finished sequences, least recently used first."""
        return iter(self._finished)

    def residents(self) -> Iterable[tuple[int, Entry]]:
        """Return the resident sequences by their slots, running or finished, in the order in which they were placed."""
        return self._entries.items()

    @property
    def cold_cells(self) -> int:
        """Cells that no running sequence holds."""
        if self._cold is None:
            self._cold = self.counted_cold = self._count_cold()
        return self._cold

    def computed(self, slot: int) -> int:
        """Return the number of computed tokens of a resident sequence."""
        return self._entries[slot].computed

    def owner(self, slot: int) -> str:
        """Return the owner of a resident sequence."""
        return self._entries[slot].owner

    def tokens(self, slot: int) -> list[int]:
        """Return the known tokens of a resident sequence."""
        entry = self._entries[slot]
        runs = [node.tokens for node in path_of(entry.leaf)]
        return list(itertools.chain.from_iterable(reversed(runs)))[: entry.length]

    # Looking up

    def match(self, tokens: list[int], owner: str = "") -> Match:
        """Return what the cache has of `tokens` for this owner, at most all but the last."""
        path, common = self._descend(tokens, len(tokens) - 1, owner)
        if not path:
            return NO_MATCH
        stored, on_disk = self._stored(path, common)
        reached = self._reached(path, common)
        resident, slot = self._best(reached, (True, False)) if self.shares else (0, -1)
        live, _ = self._best(reached, (True,)) if self.shares else (0, -1)
        finished, finished_slot = self._best(reached, (False,))
        known, _, source = max(((n, entry.computed, s) for s, entry, n in reached if entry.live), default=(0, 0, -1))
        last = path[-1]
        at_edge = common == self.edge(tokens, owner)
        continued = (common < last.end and not at_edge) or any(_sees(owner, key, at_edge) for key in last.children)
        held = next((min(node.end, common) for node in reversed(path) if not node.is_bare), 0)
        return Match(resident, slot, live, finished, finished_slot, stored, on_disk, known, source, held, common, continued)

    def has(self, tokens: list[int], owner: str = "") -> int:
        """Return how many of `tokens` are computed in some sequence, or stored, for this owner; at most all but the last."""
        path, common = self._descend(tokens, len(tokens) - 1, owner)
        resident, _ = self._best(self._reached(path, common), (True, False))
        return max(resident, self._stored(path, common)[0]) if path else 0

    def followers(self, tokens: list[int], at: int, owner: str = "") -> list[int]:
        """Return the tokens that followed tokens[:at] in some other prompt of this owner."""
        path, common = self._descend(tokens, at, owner)
        children = path[-1].children if path and path[-1].end == common else {}
        at_edge = at == self.edge(tokens, owner)
        seen = (child.tokens for key, child in children.items() if _sees(owner, key, at_edge))
        return next((run for run in seen if run[0] != tokens[at]), [])

    # Resident sequences

    def add(self, slot: int, tokens: list[int], shared: int = 0, owner: str = "") -> None:
        """Add a running sequence whose first `shared` tokens are cells of another. Raises ValueError for a slot in use."""
        if slot in self._entries:
            raise ValueError(f"slot {slot} is in use")
        self._entries[slot] = Entry(self._root, 0, shared, owner=owner, edge=first_edge(owner))
        self.extend(slot, tokens)
        self._cold = None

    def take_over(self, slot: int, tokens: list[int], length: int, owner: str = "") -> None:
        """Make a finished sequence a running one with `tokens`, of which it keeps the first `length`."""
        self.remove(slot)
        self._entries[slot] = Entry(self._root, owner=owner, edge=first_edge(owner))
        self.extend(slot, tokens)
        self.advance(slot, length)
        self._cold = None

    def extend(self, slot: int, tokens: list[int]) -> None:
        """Append known tokens to a running sequence."""
        entry = self._entries[slot]
        if entry.edge == entry.length:  # all of it is public so far
            entry.edge = self.edge([*self.tokens(slot), *tokens], entry.owner)
        node, at, rest, edge = entry.leaf, entry.length, tokens, entry.edge
        while rest:
            most = edge - at if at < edge else len(rest)  # of these in one node
            if at < node.end:  # at an edge inside a node, what follows there is not this owner's
                n = 0 if node.start < at == edge else common_length(node.tokens, rest, at - node.start, 0, min(most, len(rest)))
                at, rest = at + n, rest[n:]
                if rest and at < node.end:
                    node = self._split(node, at)
            elif child := node.children.get(key_of(entry.owner, rest[0], at, edge)):
                node = child
                self._join(slot, node)
            elif at != edge and self._grows(node, slot):
                node.tokens.extend(rest[:most])
                at, rest = node.end, rest[most:]
            else:
                node, rest = self._append(node, rest[:most], edge, entry.owner), rest[most:]
                node.slots[slot], at = entry, node.end
            entry.leaf, entry.length = node, at

    def advance(self, slot: int, count: int) -> list[tuple[int, int, int]]:
        """Count the next `count` tokens of a running sequence as computed, each in a cell of its own.

        Return the ranges of positions, with the slot that has them too, whose cells should now be shared: (slot, start, end).
        `used` counts them once already.
        """
        entry = self._entries[slot]
        start, entry.computed = entry.computed, entry.computed + count
        twice = self._held_by_others(entry, slot, start) if self.shares else []
        self.used += count - sum(end - begin for _, begin, end in twice)
        if twice:
            self._cold = None
        return twice

    def finish(self, slot: int) -> bool:
        """Turn a running sequence into a finished one, cut to its computed tokens. Return False, and remove it, when that
        keeps nothing that another sequence has not."""
        entry = self._entries[slot]
        self._cut(slot, entry)
        if not self.private_cells(slot):
            self.remove(slot)
            return False
        entry.live = False
        self._finished[slot] = None
        self._cold = None
        return True

    def remove(self, slot: int) -> None:
        """Remove a resident sequence, running or finished."""
        self._cut(slot, self._entries[slot])
        self.used -= self.private_cells(slot)
        entry = self._entries.pop(slot)
        self._finished.pop(slot, None)
        for node in list(path_of(entry.leaf)):
            node.slots.pop(slot, None)
            self._tidy(node)
        self._cold = None

    def relocate(self, slot: int, target: int) -> None:
        """Give a running sequence another slot, one that is not in use."""
        entry = self._entries[target] = self._entries.pop(slot)
        for node in path_of(entry.leaf):
            node.slots.pop(slot, None)
            node.slots[target] = entry

    def use(self, slot: int) -> None:
        """Mark a finished sequence as the most recently used one."""
        if slot in self._finished:
            self._finished.move_to_end(slot)

    def private_cells(self, slot: int) -> int:
        """Return the number of cells that `remove` would free."""
        entry = self._entries[slot]
        if not self.shares:
            return entry.computed
        return sum(self._private(node, slot) for node in path_of(entry.leaf))

    def clear(self) -> None:
        """Remove all resident sequences; what is stored remains."""
        for slot in list(self._entries):
            self.remove(slot)

    def check_integrity(self) -> None:
        """Raise AssertionError when the tree contradicts itself; for tests."""
        nodes = set()
        stack = [self._root]
        while stack:
            node = stack.pop()
            nodes.add(node)
            for first, child in node.children.items():
                assert child.parent is node and child.start == node.end and child.key == first
                assert child.tokens[0] == (first[1] if isinstance(first, tuple) else first)
                assert child.rows is None or len(child.rows) == len(child.tokens)
                assert all(self._entries[s].length > child.start for s in child.slots), "a slot beyond its length"
                assert not child.is_bare or child in self._bare, "a node without state is not remembered as such"
                stack.append(child)
        for slot, entry in self._entries.items():
            assert all(slot in node.slots for node in path_of(entry.leaf))
            assert entry.computed <= entry.length <= entry.leaf.end and (entry.leaf.start < entry.length or not entry.length)
            assert entry.live == (slot not in self._finished)
            assert entry.live or entry.computed == entry.length
        assert all(node.is_bare for node in self._bare) and set(self._bare) <= nodes
        assert self._n_bare == sum(len(node.tokens) for node in self._bare)
        assert self.size == sum(node.n_bytes for node in nodes), "bytes in host RAM are counted wrongly"
        assert set(self._in_ram) == {n for n in nodes if (n.rows if self.cuts else n.fixed) is not None}
        used = sum(entry.computed for entry in self._entries.values())
        if self.shares:
            used = sum(max((self._cells(node, s) for s in node.slots), default=0) for node in nodes)
        assert (self.used, self.cold_cells) == (used, self._count_cold()), f"counted {self.used}, found {used}"

    # Inside

    def _reached(self, path: list[Node], common: int) -> list[tuple[int, Entry, int]]:
        """Return the resident sequences that have any of the path's tokens, and how many."""
        found: list[tuple[int, Entry, int]] = []
        below: set[int] = set()
        for node in reversed(path):
            for slot in node.slots.keys() - below:
                entry = node.slots[slot]
                found.append((slot, entry, min(entry.length, node.end, common)))
            below = set(node.slots)
        return found

    def _best(self, reached: list[tuple[int, Entry, int]], live: tuple[bool, ...]) -> tuple[int, int]:
        """Return the longest computed prefix in a sequence that is running or not as `live` tells, and its slot."""
        best, found = 0, -1
        for slot, entry, length in reached:
            if entry.live in live and min(entry.computed, length) > best and (self.cuts or entry.computed <= length):
                best, found = min(entry.computed, length), slot
        return best, found

    def _grows(self, node: Node, slot: int) -> bool:
        """Tell whether tokens may be appended to a node: nothing but this sequence knows of it."""
        alone = node.slots.keys() == {slot} and not node.children
        return alone and not node.has_rows and not node.has_fixed and node is not self._root

    def _join(self, slot: int, node: Node) -> None:
        node.slots[slot] = self._entries[slot]
        self._forget_bare(node)

    def _cut(self, slot: int, entry: Entry) -> None:
        """Drop a sequence's tokens that are not computed."""
        while entry.leaf.start >= entry.computed and entry.leaf is not self._root:
            node = entry.leaf
            assert node.parent is not None
            node.slots.pop(slot, None)
            entry.leaf, entry.length = node.parent, node.start
            if node.is_bare and not node.children:
                self._unlink(node)
            else:
                self._tidy(node)
        if entry.length > entry.computed:
            leaf, entry.length = entry.leaf, entry.computed
            if self._grows(leaf, slot):
                del leaf.tokens[entry.computed - leaf.start :]

    def _held_by_others(self, entry: Entry, slot: int, start: int) -> list[tuple[int, int, int]]:
        """Return which of a sequence's computed tokens from `start` on others have computed too, and who."""
        found = []
        for node in path_of(entry.leaf):
            if node.end <= start:
                break
            begin = max(node.start, start)
            others = [(min(self._entries[s].computed, entry.computed, node.end), s) for s in node.slots if s != slot]
            end, other = max(others, default=(0, -1))
            if end > begin:
                found.append((other, begin, end))
        return found

    def _private(self, node: Node, slot: int) -> int:
        """Return the cells of a node that only this sequence holds."""
        mine = self._cells(node, slot)
        return max(0, mine - max((self._cells(node, s) for s in node.slots if s != slot), default=0))

    def _cells(self, node: Node, slot: int) -> int:
        return max(0, min(self._entries[slot].computed, node.end) - node.start)

    def _count_cold(self) -> int:
        if not self.shares:
            return sum(self._entries[slot].computed for slot in self._finished)
        nodes = {node for slot in self._finished for node in path_of(self._entries[slot].leaf)}
        return sum(self._cold_in(node) for node in nodes)

    def _cold_in(self, node: Node) -> int:
        live = max((self._cells(node, s) for s in node.slots if self._entries[s].live), default=0)
        return max(0, max(self._cells(node, s) for s in node.slots) - live)


def _sees(owner: str, key: Key, at_edge: bool) -> bool:
    """Tell whether an owner may know that prompts went on with a child of this key."""
    return key[0] == owner if isinstance(key, tuple) else not at_edge
