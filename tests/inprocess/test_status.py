from __future__ import annotations

from locallab.inprocess.status import Status
from locallab.tunnel import TunnelFacts, Usage


def test_the_status_line() -> None:
    facts = TunnelFacts("https://a.example", "open", None, 1, 2, 3, Usage(month=lambda: "2026-01").facts())
    facts.month.requests, facts.month.bytes_out, facts.month.free_plan_used = 1500, 12_300_000, 0.075
    now = Status(at=14.0, answers=1234, tokens=150, running=2, waiting=1, tunnel=facts)
    assert now.line(Status(at=10.0, tokens=50)) == (
        "1,234 answers, 2 running, 1 waiting | 25.0 tokens/s | "
        "tunnel open, this month 1,500 requests, 12.3 MB out: 7.5% of ngrok's free plan"
    )
    assert "0.0 tokens/s" in Status(at=2.0).line(Status(at=1.0, tokens=99))
