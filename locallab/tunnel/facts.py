"""What /system/info tells of the tunnel."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

State = Literal["opening", "open", "lost", "failed", "closed"]


class FreePlan(msgspec.Struct):
    """What ngrok's free plan allows a month; of bytes only those that go out count."""

    requests: int
    bytes_out: int


class MonthFacts(msgspec.Struct):
    """What went through the tunnel this calendar month (UTC)."""

    month: str
    requests: int
    bytes_out: int
    bytes_in: int
    free_plan: FreePlan
    free_plan_used: Annotated[float, Meta(description="part of the free plan that is gone; 1: all of it")]


class TunnelFacts(msgspec.Struct):
    """The public address and how it stands."""

    url: str | None
    state: State
    error: Annotated[str | None, Meta(description="why it is not open")]
    opened: Annotated[int, Meta(description="how often it has been opened")]
    connections: Annotated[int, Meta(description="that ngrok's agent counts since it was opened last")]
    requests: Annotated[int, Meta(description="that ngrok's agent counts since it was opened last")]
    month: MonthFacts
