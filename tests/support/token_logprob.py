"""The log probability of a token."""

from __future__ import annotations

from locallab.engine.request import TokenLogprob


def scored(piece: bytes, logprob: float = -1.0, hidden: bool = False) -> TokenLogprob:
    return TokenLogprob(7, piece, logprob, (), hidden)
