"""The server's view of the cluster that it is the front of, if it is one."""

from __future__ import annotations

from typing import Annotated, Literal, Protocol

import msgspec
from msgspec import Meta


class Replica(msgspec.Struct, frozen=True):
    """A process of the cluster that has a model."""

    id: Annotated[str, Meta(description="its name among all replicas")]
    node: Annotated[str, Meta(description="address of its machine")]
    model: str
    pid: Annotated[int, Meta(description="its process on that machine")]
    running: Annotated[int, Meta(description="requests that it computes")]
    waiting: Annotated[int, Meta(description="requests in its queue")]
    work_tokens: Annotated[int, Meta(description="tokens of the work that it has, as the router reckons them")]
    prompt_tokens: Annotated[int, Meta(description="tokens of prompts since it was started")]
    cached_tokens: Annotated[int, Meta(description="those of them that came from its prefix cache")]
    prefixes: Annotated[int, Meta(description="digests of prefixes that it tells the router of")]
    uptime_seconds: float


class Told(msgspec.Struct, frozen=True):
    """What a replica tells of itself: its figures, its metrics as Prometheus reads them, and its activity, an encoded
    `Snapshot` where it was asked for."""

    replica: Replica
    metrics: str = ""
    activity: bytes = b""


What = Literal["", "metrics", "activity"]


class Cluster(Protocol):
    """The replicas of a cluster. `default` is the id of the model that answers requests naming none."""

    @property
    def default(self) -> str: ...

    async def ready(self) -> bool:
        """Return whether its replicas answer, or will come with a request."""
        ...

    async def ask(self, what: What = "") -> list[Told]:
        """Return what the replicas that answer soon tell of themselves, by their names; `what` is "metrics", "activity" or
        nothing more."""
        ...
