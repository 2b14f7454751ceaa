"""What an error looks like to a client: one table per dialect maps the error tree to a status and a body."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from locallab import errors
from locallab.server.reply import reply

INTERNAL = "internal error; the server's log has the details"

RETRY_AFTER = 2
"""Seconds after which a model that is still loading, or a server that restarts, may answer."""

STATUS: Mapping[type[Exception], int] = {
    errors.RequestError: 400,
    errors.Unauthorized: 401,
    errors.Forbidden: 403,
    errors.RateLimited: 429,
    errors.UnknownModel: 404,
    errors.UnknownResponse: 404,
    errors.Overloaded: 503,
    errors.EngineClosed: 503,
    Exception: 500,
}
"""Of native routes, and of every other dialect unless its own table says otherwise. The nearest class of the error counts."""

OPENAI: Mapping[type[Exception], tuple[str, str | None]] = {
    errors.RequestError: ("invalid_request_error", None),
    errors.ContextLengthExceeded: ("invalid_request_error", "context_length_exceeded"),
    errors.Unauthorized: ("invalid_request_error", "invalid_api_key"),
    errors.Forbidden: ("invalid_request_error", "forbidden"),
    errors.RateLimited: ("requests", "rate_limit_exceeded"),
    errors.UnknownModel: ("invalid_request_error", "model_not_found"),
    errors.Overloaded: ("server_error", "overloaded"),
    errors.EngineClosed: ("server_error", "unavailable"),
    HTTPException: ("invalid_request_error", None),
    Exception: ("server_error", None),
}
"""Type and code of OpenAI's error object."""

FIELD_CODES = {"previous_response_id": "previous_response_not_found"}
"""The code of an InvalidField that has one of its own."""

PROMPTS = {
    "/v1/completions": "prompt",
    "/v1/fim/completions": "prompt",
    "/completion": "prompt",
    "/infill": "input_prefix",
    "/v1/responses": "input",
    "/v1/embeddings": "input",
    "/v1/rerank": "documents",
}
"""The field that holds the prompt on OpenAI's routes, where it is not "messages"."""

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
"""Type of Anthropic's error object, by status; api_error for every other."""

log = logging.getLogger(__name__)


def respond(request: HTTPConnection, error: Exception) -> Response:
    """The answer to a request that failed before its first byte, in the dialect of its path."""
    path = request.scope["path"]
    return reply(dialect(path).body(error, path), status_of(error), headers_of(error))


async def refuse(scope: Scope, receive: Receive, send: Send, error: Exception) -> None:
    """Sends that answer; to the opening of a WebSocket too, where the server can, else closes it unopened."""
    if scope["type"] == "http" or "websocket.http.response" in scope.get("extensions", {}):
        await respond(HTTPConnection(scope), error)(scope, receive, send)
    else:
        await send({"type": "websocket.close", "code": 1008, "reason": message_of(error)[:100]})


def status_of(error: Exception) -> int:
    return error.status_code if isinstance(error, HTTPException) else nearest(STATUS, error)


def headers_of(error: Exception) -> dict[str, str]:
    if isinstance(error, HTTPException):
        return dict(error.headers or {})
    if isinstance(error, errors.Overloaded):
        return {"retry-after": str(error.retry_after)}
    if isinstance(error, errors.Unauthorized):
        return {"www-authenticate": "Bearer"}
    if isinstance(error, errors.RateLimited):
        return {"retry-after": str(error.retry_after), **rate_headers(error.limit, error.remaining, error.reset)}
    return {"retry-after": str(RETRY_AFTER)} if status_of(error) == 503 else {}


def rate_headers(limit: int, remaining: int, reset: int) -> dict[str, str]:
    """What a client is told of its rate limit; `reset` in seconds since the epoch."""
    return {"x-ratelimit-limit": str(limit), "x-ratelimit-remaining": str(remaining), "x-ratelimit-reset": str(reset)}


def native_body(error: Exception, path: str = "") -> dict[str, Any]:
    return {"detail": message_of(error)}


def openai_body(error: Exception, path: str = "") -> dict[str, Any]:
    """OpenAI's error object."""
    kind, code = nearest(OPENAI, error)
    body: dict[str, Any] = {"message": message_of(error), "type": kind, "param": None, "code": code}
    if isinstance(error, errors.InvalidField):
        body.update(param=error.field, code=FIELD_CODES.get(error.field))
    elif isinstance(error, errors.UnknownModel):
        body["param"] = "model"
    elif isinstance(error, errors.ContextLengthExceeded):
        body.update(param=PROMPTS.get(path, "messages"), n_prompt_tokens=error.n_prompt_tokens, n_ctx=error.n_ctx)
    return {"error": body}


def anthropic_body(error: Exception, path: str = "") -> dict[str, Any]:
    """Anthropic's error object."""
    message = message_of(error)
    if isinstance(error, errors.ContextLengthExceeded):
        message = f"prompt is too long: {error.n_prompt_tokens} tokens > {error.n_ctx} maximum"
    return {"type": "error", "error": {"type": ANTHROPIC.get(status_of(error), "api_error"), "message": message}}


def ollama_body(error: Exception, path: str = "") -> dict[str, Any]:
    """Ollama's error object; its clients look for "not found" where a model is unknown."""
    message = message_of(error)
    if isinstance(error, errors.UnknownModel) and not isinstance(error, errors.ModelNotLoaded):
        hint = f"; did you mean {' or '.join(error.nearest)}?" if error.nearest else ""
        message = f"model '{error.model_id}' not found{hint}"
    return {"error": message}


@dataclasses.dataclass(frozen=True, slots=True)
class Dialect:
    """How the paths of one API tell errors: at or below one of `roots`, and not one of `but`."""

    name: Literal["native", "openai", "anthropic", "ollama"]
    roots: Sequence[str]
    body: Callable[[Exception, str], dict[str, Any]]
    but: Sequence[str] = ()

    def speaks(self, path: str) -> bool:
        return _below(path, self.roots) and not _below(path, self.but)


DIALECTS: Sequence[Dialect] = (
    Dialect("anthropic", ("/v1/messages", "/api/hello"), anthropic_body),
    Dialect("openai", ("/v1", "/infill", "/completion", "/props"), openai_body),
    Dialect("ollama", ("/api",), ollama_body, but=("/api/v1",)),
    Dialect("native", ("",), native_body),
)
"""The first that speaks for a path counts; the last one speaks for all."""


def dialect(path: str) -> Dialect:
    """Whose errors this path answers with; paths are as `middleware.paths` leaves them."""
    return next(each for each in DIALECTS if each.speaks(path))


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


def _below(path: str, roots: Sequence[str]) -> bool:
    return any(path == root or path.startswith(f"{root}/") for root in roots)


def nearest(table: Mapping[type[Exception], Any], error: Exception) -> Any:
    return next(table[kind] for kind in type(error).__mro__ if kind in table)
