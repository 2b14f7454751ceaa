"""Requests of Ollama's API, and its lines."""

from __future__ import annotations

import json
from typing import Any

from tests.support.http_server import Served

USER: list[Any] = [{"role": "user", "content": "hi"}]


def chat(served: Served, **body: Any) -> Any:
    return served.http.post("/api/chat", json={"model": "any", "messages": USER, "stream": False, **body})


def lines(text: str) -> list[dict[str, Any]]:
    """Parse a stream of JSON lines."""
    assert text.endswith("\n")
    return [json.loads(line) for line in text.removesuffix("\n").split("\n")]
