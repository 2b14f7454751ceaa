"""Requests as most clients build them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from locallab.clients.samples import SHORT, user
from locallab.clients.shape import MODEL, Check, KeyStyle, Shape

CHAT = "/v1/chat/completions"
NO_HEADERS: Mapping[str, str] = {}


def chat(
    client: str,
    doing: str,
    check: Check,
    *,
    headers: Mapping[str, str] = NO_HEADERS,
    path: str = CHAT,
    key: KeyStyle = "bearer",
    wrong_key: bool = False,
    **body: Any,
) -> Shape:
    """A chat completion."""
    limit = {} if "max_completion_tokens" in body else {"max_tokens": SHORT}
    given = {"model": MODEL, "messages": [user()], **limit, **body}
    return Shape(client=client, doing=doing, path=path, check=check, headers=headers, key=key, wrong_key=wrong_key, body=given)


def streaming(client: str, doing: str, check: Check, **more: Any) -> Shape:
    """A streamed one; most clients ask for the usage."""
    return chat(client, doing, check, **{"stream": True, "stream_options": {"include_usage": True}, **more})


def get(client: str, doing: str, path: str, check: Check) -> Shape:
    return Shape(client=client, doing=doing, method="GET", path=path, check=check)
