"""Errors as clients see them: one table per dialect maps the error tree to a status and a body."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from locallab import errors
from locallab.server.areas import Owner
from locallab.server.reply import reply

INTERNAL = "internal error; the server's log has the details"

RETRY_AFTER = 2
"""Seconds until a model that is loading, or a server that restarts, may be ready."""

STATUS: Mapping[type[Exception], int] = {
    errors.RequestError: 400,
    errors.Unauthorized: 401,
    errors.Forbidden: 403,
    errors.RateLimited: 429,
    errors.UnknownModel: 404,
    errors.UnknownResponse: 404,
    errors.NotOnDisk: 404,
    errors.NotRemovable: 409,
    errors.ModelsFixed: 409,
    errors.Overloaded: 503,
    errors.EngineClosed: 503,
    errors.EngineDied: 503,
    errors.ModelSetAside: 503,
    errors.TooManyWatchers: 503,
    errors.KeysUnreadable: 503,
    Exception: 500,
}
"""Statuses of native routes, and of other dialects without an entry of their own. The error's nearest base class counts."""

log = logging.getLogger(__name__)


def respond(request: HTTPConnection, error: Exception) -> Response:
    """Return the answer to a request that failed before its first byte, in the dialect of its path."""
    owner: Owner | None = request.scope.get("state", {}).get("dialect")
    error_body, prompts = (owner.error_body, owner.prompts) if owner else (detail_body, {})
    return reply(error_body(error, prompts.get(request.scope["path"], "messages")), status_of(error), headers_of(error))


async def refuse(scope: Scope, receive: Receive, send: Send, error: Exception) -> None:
    """Send that answer, to a WebSocket handshake too if the server supports it; else close the WebSocket unopened."""
    if scope["type"] == "http" or "websocket.http.response" in scope.get("extensions", {}):
        await respond(HTTPConnection(scope), error)(scope, receive, send)
    else:
        await send({"type": "websocket.close", "code": 1008, "reason": message_of(error)[:100]})


def status_of(error: Exception) -> int:
    return error.status_code if isinstance(error, HTTPException) else nearest(STATUS, error)


def headers_of(error: Exception) -> dict[str, str]:
    if isinstance(error, HTTPException):
        return dict(error.headers or {})
    if isinstance(error, (errors.Overloaded, errors.EngineDied, errors.ModelSetAside)):
        return {"retry-after": str(error.retry_after)}
    if isinstance(error, errors.Unauthorized):
        return {"www-authenticate": "Bearer"}
    if isinstance(error, errors.RateLimited):
        return {"retry-after": str(error.retry_after), **rate_headers(error.limit, error.remaining, error.reset)}
    return {"retry-after": str(RETRY_AFTER)} if status_of(error) == 503 else {}


def rate_headers(limit: int, remaining: int, reset: int) -> dict[str, str]:
    """Return the headers that report a rate limit; `reset` is in seconds since the epoch."""
    return {"x-ratelimit-limit": str(limit), "x-ratelimit-remaining": str(remaining), "x-ratelimit-reset": str(reset)}


def detail_body(error: Exception, prompt: str = "messages") -> dict[str, Any]:
    """Return the error body of native routes, and of requests that fail before their dialect is known."""
    return {"detail": message_of(error)}


def message_of(error: Exception) -> str:
    """Return the text for clients. It reveals nothing about an unexpected error, which `report` logs."""
    if isinstance(error, HTTPException):
        return error.detail
    return str(error) if isinstance(error, errors.LocalLabError) else INTERNAL


def report(error: Exception, doing: str) -> None:
    """Log an error that is the server's fault, an unexpected one with its traceback."""
    if not isinstance(error, (errors.LocalLabError, HTTPException)):
        log.error("%s failed", doing, exc_info=error)
    elif status_of(error) == 500:
        log.error("%s failed: %s", doing, error)


def nearest(table: Mapping[type[Exception], Any], error: Exception) -> Any:
    return next(table[kind] for kind in type(error).__mro__ if kind in table)
