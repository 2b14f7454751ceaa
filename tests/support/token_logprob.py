"""A token's log probability, as an engine tells it."""

from __future__ import annotations

from locallab.engine.request import TokenLogprob


def told(piece: bytes, logprob: float = -1.0, hidden: bool = False) -> TokenLogprob:
    return TokenLogprob(7, piece, logprob, (), hidden)
