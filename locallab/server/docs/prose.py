"""The prose of the API's description."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ABOUT = """\
LocalLab serves language models on this machine over HTTP.

**Fields.** Bodies are JSON objects. `null` means that a field is not set, unknown fields are ignored, and a wrong value
gets 400 with the field's name.

**Keys.** Where the server requires an API key, send it as `Authorization: Bearer <key>`, `x-api-key: <key>` or
`api-key: <key>`. Health checks and this description need none.

**Limits.** Requests to native routes and `/api/v1` are counted per key, or per address without one. Counted responses carry
`X-RateLimit-Limit`, `X-RateLimit-Remaining` and `X-RateLimit-Reset`; excess requests get 429 with `Retry-After`.

**Streams.** With `"stream": true` an answer arrives as server-sent events: `data: {...}` for each piece and `data: [DONE]`
at the end. The events of `/v1/messages` and `/v1/responses` have names instead, as their APIs define them. `/api/generate`
and `/api/chat` send lines of JSON unless `stream` is false. A stream that is silent for 15 seconds sends an empty event.

**Notes.** Repairs to the request, and what was left out of it, are listed in the header `x-locallab-notes` of the response.

**Errors.** Native routes and `/api/v1` answer `{"detail": "..."}`, `/v1` answers OpenAI's `{"error": {...}}`,
`/v1/messages` Anthropic's `{"type": "error", "error": {...}}`, and the other routes below `/api` Ollama's
`{"error": "..."}`.

**Paths.** Doubled and trailing slashes do not matter. OpenAI's and Anthropic's routes also work without `/v1`.

**WebSocket.** `WS /api/v1/assistant/stream` takes one JSON object per message, `{"prompt": "...", "task": "generate"}` with
the fields of the assistant routes and an optional `id`. It sends `{"type": "token", "text": "..."}` while the answer is
written, then `{"type": "done", "tokens_used": 15, "model": "...", "finish_reason": "stop"}`, each with the `id` if there
was one. `{"type": "cancel", "id": "..."}` cancels an answer. A wrong message gets `{"type": "error", "detail": "..."}`, and
the connection stays open.
"""

TAGS = {"docs": "This description."}
"""Groups of routes that belong to no dialect."""


def documented(tag: str) -> str:
    """Return the sentence that names the section about a group, by its path in the project and in the installed package.

    In the description because `externalDocs` needs an absolute URL, which the project does not have.
    """
    return f"Documented in `locallab/server/dialects/README.md#{tag.replace('.', '')}`."


EVENT: Mapping[str, Any] = {
    "description": "with `stream`: one of the server-sent events that the answer is; the data of the last one is `[DONE]`",
    "type": "object",
    "properties": {"data": {"type": "string", "description": "a JSON object, or `[DONE]`"}},
    "required": ["data"],
}

LINE: Mapping[str, Any] = {"description": "unless `stream` is false: a JSON object on each line", "type": "object"}

REASONS: Mapping[int, str] = {
    400: "the request is wrong; the message names the field",
    401: "there is no key, or it is not valid",
    403: "the Host or the Origin is not allowed",
    404: "there is no such thing: a model that is not known or not loaded, a response that is not kept",
    413: "the body is too large",
    429: "too many requests",
    500: "the server failed",
    503: "the server is busy, or no model is ready",
}

PARAMETERS: Mapping[str, str] = {
    "id": "a model's name; slashes are part of it",
    "response_id": "the id of a response that was kept",
}

SECURITY: Mapping[str, Any] = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    "api-key": {"type": "apiKey", "in": "header", "name": "api-key"},
}


def _header(kind: str, text: str) -> dict[str, Any]:
    return {"description": text, "schema": {"type": kind}}


HEADERS: Mapping[str, Any] = {
    "X-Request-ID": _header("string", "the request's id, as in the server's log: the client's own if it sent one"),
    "X-RateLimit-Limit": _header("integer", "requests allowed in the time the limit counts"),
    "X-RateLimit-Remaining": _header("integer", "requests left of them"),
    "X-RateLimit-Reset": _header("integer", "when the limit is full again, in seconds since the epoch"),
    "Retry-After": _header("integer", "seconds after which to try again"),
}
