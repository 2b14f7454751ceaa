"""What an error looks like to a client: one table per dialect maps the error tree to a status and a body."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from locallab import errors
from locallab.server.reply import reply

INTERNAL = "internal error; the server's log has the details"

RETRY_AFTER = 2
"""Seconds after which a model that is still loading, or a server that restarts, may answer."""

STATUS: Mapping[type[Exception], int] = {
    errors.RequestError: 400,
    errors.UnknownModel: 404,
    errors.Overloaded: 503,
    errors.EngineClosed: 503,
    Exception: 500,
}
"""Of native routes, and of every other dialect unless its own table says otherwise. The nearest class of the error counts."""

OPENAI: Mapping[type[Exception], tuple[str, str | None]] = {
    errors.RequestError: ("invalid_request_error", None),
    errors.ContextLengthExceeded: ("invalid_request_error", "context_length_exceeded"),
    errors.UnknownModel: ("invalid_request_error", "model_not_found"),
    errors.Overloaded: ("server_error", "overloaded"),
    errors.EngineClosed: ("server_error", "unavailable"),
    HTTPException: ("invalid_request_error", None),
    Exception: ("server_error", None),
}
"""Type and code of OpenAI's error object."""

log = logging.getLogger(__name__)


def respond(request: Request, error: Exception) -> Response:
    """The answer to a request that failed before its first byte, in the dialect of its path."""
    prompt = "prompt" if request.scope["path"] == "/v1/completions" else "messages"
    body = openai_body(error, prompt) if is_openai(request.scope) else native_body(error)
    return reply(body, status_of(error), headers_of(error))


def is_openai(scope: Scope) -> bool:
    """Whether this path answers in OpenAI's dialect."""
    path: str = scope["path"]
    return path == "/v1" or path.startswith("/v1/")


def status_of(error: Exception) -> int:
    return error.status_code if isinstance(error, HTTPException) else _nearest(STATUS, error)


def headers_of(error: Exception) -> dict[str, str]:
    if isinstance(error, HTTPException):
        return dict(error.headers or {})
    if isinstance(error, errors.Overloaded):
        return {"retry-after": str(error.retry_after)}
    return {"retry-after": str(RETRY_AFTER)} if status_of(error) == 503 else {}


def native_body(error: Exception) -> dict[str, Any]:
    return {"detail": message_of(error)}


def openai_body(error: Exception, prompt: str = "messages") -> dict[str, Any]:
    """OpenAI's error object; `prompt` is the field that holds the prompt on this route."""
    kind, code = _nearest(OPENAI, error)
    body: dict[str, Any] = {"message": message_of(error), "type": kind, "param": None, "code": code}
    if isinstance(error, errors.InvalidField):
        body["param"] = error.field
    elif isinstance(error, errors.UnknownModel):
        body["param"] = "model"
    elif isinstance(error, errors.ContextLengthExceeded):
        body.update(param=prompt, n_prompt_tokens=error.n_prompt_tokens, n_ctx=error.n_ctx)
    return {"error": body}


def message_of(error: Exception) -> str:
    """What a client may read. An error nobody expected tells nothing about the inside; `report` has logged it."""
    if isinstance(error, HTTPException):
        return error.detail
    return str(error) if isinstance(error, errors.LocalLabError) else INTERNAL


def report(error: Exception, doing: str) -> None:
    """Logs an error that is the server's fault: with its traceback when nobody expected it."""
    if not isinstance(error, (errors.LocalLabError, HTTPException)):
        log.error("%s failed", doing, exc_info=error)
    elif status_of(error) == 500:
        log.error("%s failed: %s", doing, error)


def _nearest(table: Mapping[type[Exception], Any], error: Exception) -> Any:
    return next(table[kind] for kind in type(error).__mro__ if kind in table)
