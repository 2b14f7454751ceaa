"""What one rendering of a chat template may use: a template is a program of whoever made the file."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, NoReturn

from jinja2.utils import Namespace

CONTAINERS = frozenset({list, tuple, dict, set, type({}.items()), type({}.keys()), type({}.values()), Namespace})
"""Types whose text, comparison and hash take as long as what they hold is large."""

SIZED = frozenset({str, list, tuple, range})
"""Types that take the longer to search the more they hold."""

LARGE = 1024
"""Characters or items for which an operation counts as a step of its own."""

OBJECT = 64
"""Characters that any made value counts as, at least."""

BITS = 65_536
"""Bits of the largest integer: arithmetic with larger ones takes longer than linear time."""

STRIDE = 32
"""Steps between two looks at the clock."""


class Exceeded(Exception):
    """A template has used up its budget; the message is the limit, such as "1,000 loop steps"."""


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """`seconds` of processor time, `steps` through blocks and items of loops, `size` in characters of all text that is made."""

    seconds: float = 2.0
    steps: int = 1_000_000
    size: int = 16 << 20

    def grown(self, n_messages: int, length: int) -> Limits:
        """Return the limits for a conversation of so many messages and characters. `size` stays within 256 Mi."""
        seconds, steps = self.seconds + length / 1e6, self.steps + 100 * n_messages + length
        return Limits(seconds, steps, min(self.size + 64 * (length + 256 * n_messages), 256 << 20))


NORMAL = Limits()
QUICK = Limits(0.01, 20_000, 1 << 20)
"""What may be used on the event loop."""


class Budget:
    """What is left of `limits`. Belongs to the thread that made it.

    Compiled templates call `step`, `add`, `joined`, `charged`, `weighed` and `written`, which therefore are short. Each method
    raises Exceeded once a limit is reached.
    """

    __slots__ = ("_ends", "_look", "_weights", "limits", "size", "spent", "steps")

    def __init__(self, limits: Limits = NORMAL) -> None:
        self.limits = limits
        self.spent = False
        self.size = limits.size
        self.steps = limits.steps
        self._look = limits.steps - STRIDE
        self._ends = time.thread_time() + limits.seconds
        self._weights: dict[int, tuple[Any, int]] = {}

    def step(self, count: int = 1) -> None:
        """Count steps; look at the time every few of them."""
        self.steps -= count
        if self.steps < self._look:
            self._look = self.steps - STRIDE
            self.check(0)
            if self.steps < 0:
                self._end(f"{self.limits.steps:,} loop steps")
            if time.thread_time() > self._ends:
                self._end(f"{self.limits.seconds:g} s")

    def take(self, size: int) -> None:
        """Count characters that are about to be made, or were."""
        self.size -= size
        if self.size < 0:
            self.check(0)

    def check(self, size: int) -> None:
        """Make sure that there is room for so many characters."""
        if size > self.size:
            self._end(f"{self.limits.size:,} characters")

    def _end(self, limit: str) -> NoReturn:
        self.spent = True
        raise Exceeded(limit)

    def weigh(self, value: Any) -> int:
        """Return about how many characters the text of `value` has; a container counts once for each place that it is in,
        because whoever writes, compares or hashes it visits it as often. Raises Exceeded if there is no room for them."""
        if isinstance(value, str):
            return len(value) + 2
        if type(value) not in CONTAINERS:
            return OBJECT
        known = self._weights.get(id(value))
        if known is not None:
            return known[1]
        items = [value._Namespace__attrs] if isinstance(value, Namespace) else value
        self.step(len(items))
        weight = OBJECT + 8 * len(items) + sum(map(self.weigh, items))
        if isinstance(items, Mapping):
            weight += sum(map(self.weigh, items.values()))
        self.check(weight)
        if not isinstance(value, Namespace):  # the only one whose contents change
            self._weights[id(value)] = (value, weight)  # kept, so that no other value gets its id
        return weight

    def counted(self, items: Iterable[Any]) -> Iterator[Any]:
        """Yield the items, each a step."""
        for item in items:
            self.step()
            yield item

    def charged(self, value: Any) -> Any:
        """Count a value that was made and return it. Raises ValueError for a number that is too large."""
        if isinstance(value, str):
            self.take(OBJECT + len(value))
        elif isinstance(value, list | tuple | dict | set):
            self.take(OBJECT + 8 * len(value))
        elif isinstance(value, int) and value.bit_length() > BITS:
            raise ValueError(f"a number of more than {BITS:,} bits")
        else:
            self.take(OBJECT)
        return value

    def weighed(self, value: Any) -> Any:
        """Return a value that is about to be searched, compared or hashed, if that ends in time: a large one takes steps."""
        kind = type(value)
        if kind in CONTAINERS:
            self.weigh(value)
        if kind in SIZED and len(value) > LARGE:
            self.step(len(value) // LARGE)
        return value

    def written(self, value: Any) -> Any:
        """Return a value that is about to be written, if its text has room."""
        self.size -= OBJECT  # `step` looks whether there is any left
        self.steps -= 1
        if self.steps < self._look:
            self.step(0)
        if type(value) in CONTAINERS:
            self.take(self.weigh(value))
        return value

    def add(self, left: Any, right: Any) -> Any:
        if type(left) is str and type(right) is str:
            self.size -= OBJECT + len(left) + len(right)
            if self.size < 0:
                self.check(0)
            return left + right
        return self.charged(left + right)

    def joined(self, *values: Any) -> str:
        """Concatenate as `~` does."""
        return self.concat([str(self.written(value)) for value in values])

    def concat(self, pieces: Iterable[str]) -> str:
        if isinstance(pieces, list):
            self.take(sum(map(len, pieces)))
            return "".join(pieces)
        texts = []
        for piece in pieces:  # of the whole template, which makes the next one when it is asked for it
            self.take(OBJECT + len(piece))
            texts.append(piece)
        return "".join(texts)


_CURRENT: ContextVar[Budget] = ContextVar("budget")
current = _CURRENT.get
"""Return the budget of the rendering under way in this thread."""


@contextlib.contextmanager
def allotted(limits: Limits = NORMAL, *, anew: bool = True) -> Iterator[Budget]:
    """Give all renderings inside one budget of these limits. With `anew` False, an enclosing budget stays in force."""
    budget = None if anew else _CURRENT.get(None)
    if budget is not None:
        yield budget
        return
    token = _CURRENT.set(budget := Budget(limits))
    try:
        yield budget
    finally:
        _CURRENT.reset(token)
