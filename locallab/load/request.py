"""What to send: requests, and plans of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Request:
    """One chat: the fields of its body, without those that every request has, and the answer that is due.

    `max_tokens`: of each of its `n` choices; one that is not `exact` may end earlier. `keep`: its text is wanted.
    """

    body: Mapping[str, Any]
    max_tokens: int
    n: int = 1
    exact: bool = True
    keep: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """Each lane is one client's requests, in order; the arrivals come one after another while the lanes decode."""

    lanes: list[list[Request]]
    arrivals: list[Request] = field(default_factory=list)
