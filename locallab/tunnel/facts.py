"""The tunnel's part of /system/info."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from locallab.settings import Provider

State = Literal["opening", "open", "lost", "failed", "closed"]


class FreePlan(msgspec.Struct):
    """Monthly limits of ngrok's free plan; only outgoing bytes count."""

    requests: int
    bytes_out: int


class MonthFacts(msgspec.Struct):
    """Traffic through the tunnel in this calendar month (UTC)."""

    month: str
    requests: int
    bytes_out: int
    bytes_in: int
    free_plan: FreePlan | None
    free_plan_used: Annotated[float | None, Meta(description="used fraction of ngrok's free plan; 1: all of it")]


class TunnelFacts(msgspec.Struct):
    """The public address and its status."""

    url: str | None
    state: State
    error: Annotated[str | None, Meta(description="reason why it is not open")]
    opened: Annotated[int, Meta(description="number of times it has been opened")]
    connections: Annotated[
        int | None, Meta(description="connections since it was last opened, counted by the agent; cloudflared does not")
    ]
    requests: Annotated[int, Meta(description="requests since it was last opened, counted by the agent")]
    month: MonthFacts
    provider: Annotated[Provider, Meta(description="whose tunnel it is")] = "ngrok"
