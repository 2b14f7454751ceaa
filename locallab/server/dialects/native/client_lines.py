"""Answers in the forms that only the package locallab-client 1.1 reads: lines of text, lines of JSON, and statuses."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request

from locallab.server.dialects.native.stream import NativeChatFormatter, NativeFormatter
from locallab.server.errors import message_of
from locallab.server.inference.generation import Item
from locallab.server.streaming import DONE, line

SAMPLED = {"model_id", "stream", "max_length", "temperature", "top_p", "repetition_penalty", "top_k"}
GENERATE = {"prompt", "do_sample", *SAMPLED}
CHAT = {"messages", *SAMPLED}
LOAD = {"model_id"}
UNLOAD: set[str] = set()

LOADED = "success"
UNLOADED = "Model unloaded successfully"


async def is_client(request: Request, fields: set[str]) -> bool:
    """Tell requests of locallab-client from others: by its library, by a content type set for all of its requests, which
    therefore comes first, and by all `fields` of its method, and no other but max_time."""
    names = [name for name, _ in request.headers.raw]
    if "aiohttp/" not in request.headers.get("user-agent", "") or b"content-type" not in names:
        return False
    if names.index(b"content-type") > names.index(b"user-agent"):
        return False
    return msgspec.json.decode(await request.body() or b"{}", type=dict[str, msgspec.Raw]).keys() - {"max_time"} == fields


async def expected(request: Request, described: msgspec.Struct, fields: set[str], status: str) -> Any:
    """Return the description of a model, for locallab-client with the `status` that tells it of success."""
    return {**msgspec.to_builtins(described), "status": status} if await is_client(request, fields) else described


class TextLines(NativeFormatter):
    """Formats bare text, an event for each piece.

    The client strips every line. So a piece begins and ends with a visible character, and a line break is written as the
    character NEL (U+0085). White space is lost only around the whole answer.
    """

    _rest = ""

    def encode(self, items: list[Item]) -> bytes:
        text = "".join(self.texts(items)).replace("\n", "\x85")
        known, self._rest = max(1, len(self._rest)), self._rest + text
        for cut in range(len(self._rest) - 1, known - 1, -1):
            if not self._rest[cut - 1].isspace() and not self._rest[cut].isspace():
                piece, self._rest = self._rest[:cut], self._rest[cut:]
                return _lines(piece)
        return b""

    def end(self) -> bytes:
        return _lines(self._rest) + DONE

    def fail(self, error: Exception) -> bytes:
        return _lines(self._rest) + _line(f"Error: {' '.join(message_of(error).split())}")

    def ping(self) -> bytes:
        return b"\n"


class ChatLines(NativeChatFormatter):
    """Formats the chunks of a chat as lines of JSON."""

    def chunk(self, choice: dict[str, Any], **more: Any) -> bytes:
        return line(self.head.body(self.kind, [choice], **more))

    def end(self) -> bytes:
        return line("[DONE]")

    def fail(self, error: Exception) -> bytes:
        return f"Error: {' '.join(message_of(error).split())}\n".encode()


def _lines(piece: str) -> bytes:
    """Return the events of a piece; one that reads like an error or the end is cut behind its first character."""
    piece = piece.strip()
    if piece == "[DONE]" or piece.startswith("Error:"):
        return _line(piece[0]) + _line(piece[1:])
    return _line(piece) if piece else b""


def _line(text: str) -> bytes:
    return b"data: " + text.encode() + b"\n\n"
