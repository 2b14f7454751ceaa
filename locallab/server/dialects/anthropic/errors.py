"""Anthropic's error object."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from locallab import errors
from locallab.server.errors import message_of, status_of


class AnthropicError(msgspec.Struct):
    type: str
    message: str


class AnthropicProblem(msgspec.Struct):
    """An error, in Anthropic's shape."""

    type: Literal["error"]
    error: AnthropicError


ANTHROPIC: Mapping[int, str] = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
"""Type of Anthropic's error object by status; api_error for all others."""


def anthropic_body(error: Exception, prompt: str = "messages") -> dict[str, Any]:
    """Return Anthropic's error object."""
    message = message_of(error)
    if isinstance(error, errors.ContextLengthExceeded):
        message = f"prompt is too long: {error.n_prompt_tokens} tokens > {error.n_ctx} maximum"
    return {"type": "error", "error": {"type": ANTHROPIC.get(status_of(error), "api_error"), "message": message}}
