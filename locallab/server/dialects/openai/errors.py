"""OpenAI's error object."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.exceptions import HTTPException

from locallab import errors
from locallab.server.errors import message_of, nearest


class OpenAIError(msgspec.Struct, omit_defaults=True):
    """OpenAI's error object; for a prompt that is too long, with its length and the context's."""

    message: str
    type: str
    param: str | None
    code: str | None
    n_prompt_tokens: int | msgspec.UnsetType = msgspec.UNSET
    n_ctx: int | msgspec.UnsetType = msgspec.UNSET


class OpenAIProblem(msgspec.Struct):
    """An error, in OpenAI's shape."""

    error: OpenAIError


OPENAI: Mapping[type[Exception], tuple[str, str | None]] = {
    errors.RequestError: ("invalid_request_error", None),
    errors.ContextLengthExceeded: ("invalid_request_error", "context_length_exceeded"),
    errors.Unauthorized: ("invalid_request_error", "invalid_api_key"),
    errors.Forbidden: ("invalid_request_error", "forbidden"),
    errors.AdminRequired: ("invalid_request_error", "insufficient_permissions"),
    errors.RateLimited: ("requests", "rate_limit_exceeded"),
    errors.UnknownModel: ("invalid_request_error", "model_not_found"),
    errors.Overloaded: ("server_error", "overloaded"),
    errors.EngineClosed: ("server_error", "unavailable"),
    errors.EngineDied: ("server_error", "unavailable"),
    errors.ModelSetAside: ("server_error", "unavailable"),
    errors.KeysUnreadable: ("server_error", "unavailable"),
    HTTPException: ("invalid_request_error", None),
    Exception: ("server_error", None),
}
"""Type and code of OpenAI's error object, by class."""

FIELD_CODES = {"previous_response_id": "previous_response_not_found"}
"""Codes of fields that have their own."""


def openai_body(error: Exception, prompt: str = "messages") -> dict[str, Any]:
    """Return OpenAI's error object; `prompt` is the field that holds the prompt."""
    kind, code = nearest(OPENAI, error)
    body: dict[str, Any] = {"message": message_of(error), "type": kind, "param": None, "code": code}
    if isinstance(error, errors.InvalidField):
        body.update(param=error.field, code=FIELD_CODES.get(error.field))
    elif isinstance(error, errors.UnknownModel):
        body["param"] = "model"
    elif isinstance(error, errors.ContextLengthExceeded):
        body.update(param=prompt, n_prompt_tokens=error.n_prompt_tokens, n_ctx=error.n_ctx)
    return {"error": body}
