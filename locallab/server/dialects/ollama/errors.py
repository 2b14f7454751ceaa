"""Ollama's error object."""

from __future__ import annotations

from typing import Any

import msgspec

from locallab import errors
from locallab.server.errors import message_of


class OllamaProblem(msgspec.Struct):
    """An error, in Ollama's shape."""

    error: str


def ollama_body(error: Exception, prompt: str = "messages") -> dict[str, Any]:
    """Return Ollama's error object; its clients look for "not found" in that of an unknown model."""
    message = message_of(error)
    if isinstance(error, errors.UnknownModel) and not isinstance(error, errors.ModelNotLoaded):
        message = f"model '{error.model_id}' not found{error.hint}"
    return {"error": message}
