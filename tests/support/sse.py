"""Parsing of server-sent events."""

from __future__ import annotations

import json
from typing import Any

import httpx

DONE = "[DONE]"


def events(response: httpx.Response) -> list[Any]:
    """Return the data of each event: JSON, or DONE, which must be last."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    return parsed(response.text)


def parsed(text: str) -> list[Any]:
    assert text.endswith("\n\n")
    blocks = [block for block in text.split("\n\n") if block and not block.startswith(":")]
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks)
    return [DONE if block == f"data: {DONE}" else json.loads(block[6:]) for block in blocks]
