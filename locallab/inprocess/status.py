"""The status of a server, and its one-line form."""

from __future__ import annotations

import dataclasses

from locallab.pool import Pool
from locallab.tunnel import TunnelFacts


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """A snapshot. `answers` and `tokens` are totals since the start; `at` is in seconds of any clock."""

    at: float
    answers: int = 0
    tokens: int = 0
    running: int = 0
    waiting: int = 0
    tunnel: TunnelFacts | None = None

    @classmethod
    def of(cls, pool: Pool, tunnel: TunnelFacts | None, at: float) -> Status:
        engines = [loaded.engine for loaded in pool.loaded]
        stats = [engine.stats() for engine in engines]
        return cls(
            at=at,
            answers=sum(sum(engine.totals.time_to_first_token.counts) for engine in engines),
            tokens=sum(engine.totals.completion_tokens for engine in engines),
            running=sum(each.running for each in stats),
            waiting=sum(each.waiting for each in stats),
            tunnel=tunnel,
        )

    def line(self, before: Status) -> str:
        """Return the status as a line, with the speed since `before`."""
        seconds = max(self.at - before.at, 1e-9)
        speed = max(0, self.tokens - before.tokens) / seconds  # a swapped model restarts its count
        parts = [f"{self.answers:,} answers, {self.running} running, {self.waiting} waiting", f"{speed:.1f} tokens/s"]
        if self.tunnel is not None:
            month = self.tunnel.month
            went = f"{month.requests:,} requests, {month.bytes_out / 1e6:.1f} MB out"
            plan = "" if month.free_plan_used is None else f": {month.free_plan_used:.1%} of ngrok's free plan"
            parts.append(f"tunnel {self.tunnel.state}, this month {went}{plan}")
        return " | ".join(parts)
