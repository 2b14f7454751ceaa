"""A prompt of a tiny model, and the meaning of its tokens."""

from __future__ import annotations

import gguf

from tests.support.tiny_gguf import BOS, N_VOCAB

NORMAL, CONTROL, USER = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED
TEXTS = ["▁", '{"', '":', '▁"', '",', '"}', '"]', "ab", "name", "true", "null"]
MORE = [*((text, NORMAL) for text in TEXTS), ("<|mark|>", CONTROL), ("<tag>", USER)]
MARK = N_VOCAB + len(TEXTS)
PROMPT = [BOS, *range(100, 120)]
