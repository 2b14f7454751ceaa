"""When to ask the Hub again: after 429 and 5xx, and when a download breaks off. The decision is pure."""

from __future__ import annotations

import datetime
import email.utils
import re
import threading
from collections.abc import Callable, Mapping

TRIES = 5
"""Times in a row that a request may be sent again without a byte having come."""

LONGEST = 300.0
"""The longest time, in seconds, that the Hub may ask us to wait; its rate limits count in windows of this length."""

LOOK = 0.5  # seconds between two calls of what may end the wait
STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})


def delay(failures: int, status: int | None, asked: float | None) -> float | None:
    """Seconds to wait after this many failures in a row, None to give up.

    `status` None is a connection that broke; `asked` is what the answer asks for.
    """
    if failures > TRIES or (status is not None and status not in STATUSES):
        return None
    if asked is not None:
        return asked if asked <= LONGEST else None
    return float(2 ** (failures - 1))


def asked(headers: Mapping[str, str], now: datetime.datetime) -> float | None:
    """Seconds that an answer asks to wait: its Retry-After, in either form, or else the window of its rate limit."""
    after = headers.get("retry-after", "").strip()
    if after.isdigit():
        return float(after)
    if after:
        try:
            return max(0.0, (email.utils.parsedate_to_datetime(after) - now).total_seconds())
        except (TypeError, ValueError):
            return None
    window = re.search(r";\s*r=0\s*;\s*t=(\d+)", headers.get("ratelimit", ""))
    return float(window[1]) if window else None


def wait(seconds: float, alive: Callable[[], None]) -> None:
    """Waits; calls `alive` all the while, which may raise to end it."""
    left = seconds
    while left > 0:
        alive()
        pause(min(LOOK, left))
        left -= LOOK


def pause(seconds: float) -> None:
    threading.Event().wait(seconds)
