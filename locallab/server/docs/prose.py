"""Prose of the API's description."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ABOUT = """\
LocalLab serves language models on this machine over HTTP.

**Fields.** Bodies are JSON objects. `null` means that a field is not set, and a wrong value gets 400 with the field's
name. So does a known field that is not supported, unless its value asks for nothing. Unknown fields are noted and ignored.

**Keys.** Where the server requires an API key, send it as `Authorization: Bearer <key>`, `x-api-key: <key>` or
`api-key: <key>`. Health checks and this description need none. A key with the role `use` may not load, unload or fetch
models: that takes one with the role `admin`. After 20 wrong keys a minute from one address further ones get 429.

**Limits.** Requests to native routes and `/api/v1` are counted per key, or per address without one. Counted responses carry
`X-RateLimit-Limit`, `X-RateLimit-Remaining` and `X-RateLimit-Reset`; excess requests get 429 with `Retry-After`.

**Streams.** With `"stream": true` an answer arrives as server-sent events: `data: {...}` for each piece and `data: [DONE]`
at the end. The events of `/v1/messages` and `/v1/responses` have names instead, as their APIs define them. `/api/generate`
and `/api/chat` send lines of JSON unless `stream` is false. A stream that is silent for 15 seconds sends an empty event.

**Notes.** Repairs to the request, and what was left out of it, are listed in the header `x-locallab-notes` of the response.

**Cache.** Answers of text models carry `x-locallab-cache: hit=1016/1113; tier=host; stop=diverged at 1016`: how many tokens
of the prompt were found in the prefix cache, where (`resident`, `host`, `disk` or `none`), and why not more.

**Errors.** Native routes and `/api/v1` answer `{"detail": "..."}`, `/v1` answers OpenAI's `{"error": {...}}`,
`/v1/messages` Anthropic's `{"type": "error", "error": {...}}`, and the other routes below `/api` Ollama's
`{"error": "..."}`.

**Paths.** Doubled and trailing slashes do not matter. OpenAI's and Anthropic's routes also work without `/v1`.

**WebSocket.** `WS /api/v1/assistant/stream` takes one JSON object per message, `{"prompt": "...", "task": "generate"}` with
the fields of the assistant routes and an optional `id`. It sends `{"type": "token", "text": "..."}` while the answer is
written, then `{"type": "done", "tokens_used": 15, "model": "...", "finish_reason": "stop", "cache": "..."}`, each with the
`id` if there was one; `cache` is what HTTP has in `x-locallab-cache`. `{"type": "cancel", "id": "..."}` cancels an answer. A
wrong message gets `{"type": "error", "detail": "..."}`, and the connection stays open.
"""

TAGS = {"docs": "This description."}
"""Groups of routes outside of all dialects."""


def documented(tag: str) -> str:
    """Return the sentence that names the section about a group, by its path in the project and in the installed package.

    In the description because `externalDocs` needs an absolute URL, which the project does not have.
    """
    return f"Documented in `locallab/server/dialects/README.md#{tag.replace('.', '')}`."


EVENT: Mapping[str, Any] = {
    "description": "with `stream`: a server-sent event; the data of the last one is `[DONE]`",
    "type": "object",
    "properties": {"data": {"type": "string", "description": "a JSON object, or `[DONE]`"}},
    "required": ["data"],
}

LINE: Mapping[str, Any] = {"description": "unless `stream` is false: one JSON object per line", "type": "object"}

REASONS: Mapping[int, str] = {
    400: "invalid request; the message names the field",
    401: "missing or invalid API key",
    403: "Host or Origin not allowed, or a request that takes a key with the role admin",
    404: "not found: a model that is unknown, not loaded or not on disk, or a response that is not stored",
    409: "the weights of the model cannot be removed",
    413: "request body too large",
    415: "content encoding other than gzip and deflate",
    429: "rate limit exceeded",
    500: "server error",
    503: "server busy, or no model ready",
}

PARAMETERS: Mapping[str, str] = {
    "id": "a model's name; slashes are part of it",
    "response_id": "the id of a stored response",
}

SECURITY: Mapping[str, Any] = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    "api-key": {"type": "apiKey", "in": "header", "name": "api-key"},
}


def _header(kind: str, text: str) -> dict[str, Any]:
    return {"description": text, "schema": {"type": kind}}


HEADERS: Mapping[str, Any] = {
    "X-Request-ID": _header("string", "the request's id in the server's log; the client's own if it sent one"),
    "X-RateLimit-Limit": _header("integer", "requests allowed in the limit's window"),
    "X-RateLimit-Remaining": _header("integer", "requests left in the window"),
    "X-RateLimit-Reset": _header("integer", "time of the limit's reset, in seconds since the epoch"),
    "X-LocalLab-Cache": _header("string", "tokens of the prompt found in the prefix cache, where, and why not more"),
    "Retry-After": _header("integer", "seconds to wait before trying again"),
}
