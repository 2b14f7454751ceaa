"""The prose of the API's description."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ABOUT = """\
LocalLab runs a language model on this machine and answers over HTTP.

**Fields.** Bodies are JSON objects. `null` stands for a field that is not set; fields that are not known are ignored; a wrong
one is answered 400 with its name.

**Keys.** Where the server asks for an API key, send it as `Authorization: Bearer <key>`, `x-api-key: <key>` or
`api-key: <key>`. Health, metrics and this description need none.

**Limits.** Native routes and `/api/v1` count requests by key, or by address where there is none. Every counted answer says in
`X-RateLimit-Limit`, `X-RateLimit-Remaining` and `X-RateLimit-Reset` how it stands; one request too many is answered 429 with
`Retry-After`.

**Streams.** With `"stream": true` an answer comes as server-sent events while it is written: `data: {...}` each, the last one
`data: [DONE]`. Those of `/v1/messages` and `/v1/responses` have names instead, which say when it ends. `/api/generate` and
`/api/chat` send lines of JSON, unless `stream` is false. After 15 seconds of silence something goes out that says nothing.

**Notes.** What was mended in a request, or left out of it, is told in the header `x-locallab-notes` of the answer.

**Errors.** Native routes and `/api/v1` answer `{"detail": "..."}`, `/v1` answers OpenAI's `{"error": {...}}`, `/v1/messages`
Anthropic's `{"type": "error", "error": {...}}`, and the other routes below `/api` Ollama's `{"error": "..."}`.

**Paths.** Doubled and trailing slashes do not matter, and OpenAI's routes work without `/v1` too.

**WebSocket.** `WS /api/v1/assistant/stream` takes one JSON object a message, `{"prompt": "...", "task": "generate"}` with the
fields of the assistant routes and an optional `id`. It answers `{"type": "token", "text": "..."}` while the answer is written,
then `{"type": "done", "tokens_used": 15, "model": "...", "finish_reason": "stop"}`, each with the `id` if there was one.
`{"type": "cancel", "id": "..."}` stops an answer; what is wrong is answered `{"type": "error", "detail": "..."}`, and the
connection stays open.
"""

TAGS = {"docs": "This description."}
"""Groups of routes that belong to no dialect."""

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
