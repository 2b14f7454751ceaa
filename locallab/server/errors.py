"""What an error looks like to a client: one table per dialect maps the error tree to a status and a body."""

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

log = logging.getLogger(__name__)


def respond(request: HTTPConnection, error: Exception) -> Response:
    """The answer to a request that failed before its first byte, in the dialect of its path."""
    owner: Owner | None = request.scope.get("state", {}).get("dialect")
    error_body, prompts = (owner.error_body, owner.prompts) if owner else (detail_body, {})
    return reply(error_body(error, prompts.get(request.scope["path"], "messages")), status_of(error), headers_of(error))


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


def detail_body(error: Exception, prompt: str = "messages") -> dict[str, Any]:
    """The error body of LocalLab's own routes, and of what fails before it is known whose path it is."""
    return {"detail": message_of(error)}


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


def nearest(table: Mapping[type[Exception], Any], error: Exception) -> Any:
    return next(table[kind] for kind in type(error).__mro__ if kind in table)
