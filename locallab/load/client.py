"""A streaming chat client with as little work per token as possible: on a small machine its CPU time is the server's loss."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from locallab.load.request import Request

# A delta with some text; a quote inside a JSON string is escaped, so the answer's own text cannot match.
CONTENT = re.compile(rb'"(?:content|reasoning_content)"\s*:\s*"(?!")')
# The first number by this name in an event is that of its choice; quotes in the answer's own text are escaped here too.
INDEX = re.compile(rb'"index"\s*:\s*(\d+)')
RARE = re.compile(rb'"(?:finish_reason"\s*:\s*"|usage"\s*:\s*\{|error"\s*:)')


@dataclass(slots=True)
class Answer:
    """What came back for one request; times are those of time.perf_counter. `max_tokens` is the sum over its `n` choices.

    An answer that is not `exact` may end earlier. With `kept` = [] the events with text are kept there, for `text`.
    """

    max_tokens: int
    started: float
    n: int = 1
    exact: bool = True
    kept: list[bytes] | None = None
    ended: float = 0.0
    status: int = 0
    arrivals: dict[int, list[float]] = field(default_factory=dict)  # of each choice: one for each event with text
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    usage_tokens: int | None = None
    finish_reasons: dict[int, str] = field(default_factory=dict)
    done: bool = False
    cut_off: bool = False
    error: str | None = None

    @property
    def tokens(self) -> int:
        """Tokens of the answer: the server's own count, else the number of events with text."""
        return sum(map(len, self.arrivals.values())) if self.usage_tokens is None else self.usage_tokens

    @property
    def wrong_length(self) -> bool:
        """Whether a complete answer has another number of tokens than was asked for, or claims fewer than it has events."""
        low = self.max_tokens if self.exact else self.n
        return not low <= self.tokens <= self.max_tokens or self.tokens < sum(map(len, self.arrivals.values()))

    @property
    def text(self) -> str:
        """The text of an answer that was kept, choices in the order of their pieces."""
        deltas = [choice.get("delta") or {} for data in self.kept or () for choice in json.loads(data).get("choices") or ()]
        return "".join(delta.get("reasoning_content") or delta.get("content") or "" for delta in deltas)

    def take(self, line: bytes, now: float) -> None:
        """Take one line of the event stream, which arrived at `now`."""
        if not line.startswith(b"data:"):
            return
        data = line[5:].strip()
        if data == b"[DONE]":
            self.done = True
            return
        if CONTENT.search(data):
            index = INDEX.search(data)
            self.arrivals.setdefault(int(index[1]) if index else 0, []).append(now)
            if self.kept is not None:
                self.kept.append(data)
        if RARE.search(data):
            self._read(json.loads(data))

    def _read(self, event: dict[str, Any]) -> None:
        if event.get("error"):
            self.error = f"error event: {_message(event)}"
        for choice in event.get("choices") or []:
            if choice.get("finish_reason"):
                self.finish_reasons[choice.get("index", 0)] = choice["finish_reason"]
        usage = event.get("usage") or {}
        self.prompt_tokens = usage.get("prompt_tokens", self.prompt_tokens)
        self.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", self.cached_tokens)
        if "completion_tokens" in usage:  # llama.cpp's server counts each choice by itself, others all of them at the end
            before = self.usage_tokens if self.n > 1 else None
            self.usage_tokens = (before or 0) + usage["completion_tokens"]

    def close(self, now: float, error: str | None = None) -> None:
        """End the answer at `now`; one that began and lacks a finish reason or [DONE] was cut off."""
        self.ended = now
        self.error = self.error or error
        whole = self.done and len(self.finish_reasons) == self.n
        if self.status == 200 and self.error is None and not whole:
            self.cut_off, self.error = True, "cut off: no [DONE]" if not self.done else "cut off: no finish_reason"


class ResponseReader:
    """Takes an HTTP/1.1 response apart: `feed` returns the whole lines of the body that have arrived."""

    def __init__(self) -> None:
        self.status = 0
        self.ended = False
        self.body = b""  # the line that is not whole yet
        self._raw = bytearray()
        self._chunked = False
        self._left: int | None = None  # of a body with a Content-Length

    def feed(self, data: bytes) -> list[bytes]:
        """Return the whole lines of the body that `data` completes. Raises ValueError when the bytes are not HTTP/1.1."""
        self._raw += data
        if not self.status and not self._head():
            return []
        self.body += self._dechunk() if self._chunked else self._plain()
        *lines, self.body = self.body.split(b"\n")
        return [line.rstrip(b"\r") for line in lines]

    def _head(self) -> bool:
        end = self._raw.find(b"\r\n\r\n")
        if end < 0:
            return False
        first, *headers = bytes(self._raw[:end]).split(b"\r\n")
        del self._raw[: end + 4]
        if not first.startswith(b"HTTP/1."):
            raise ValueError(f"not HTTP/1.1: {first[:40]!r}")
        self.status = int(first.split()[1])
        for header in headers:
            name, _, value = header.lower().partition(b":")
            if name == b"transfer-encoding":
                self._chunked = value.strip() == b"chunked"
            elif name == b"content-length":
                self._left = int(value)
        return True

    def _plain(self) -> bytes:
        taken = bytes(self._raw[: self._left])
        del self._raw[: len(taken)]
        if self._left is not None:
            self._left -= len(taken)
            self.ended = self._left == 0
        return taken

    def _dechunk(self) -> bytes:
        taken = b""
        while not self.ended and (line := self._raw.find(b"\r\n")) >= 0:
            size, start = int(self._raw[:line].split(b";")[0], 16), line + 2
            if len(self._raw) < start + size + 2:
                break
            taken += self._raw[start : start + size]
            del self._raw[: start + size + 2]
            self.ended = size == 0
        return taken


class ChatClient:
    """Sends chats to one server, each on a connection of its own, without a proxy; `timeout` in seconds, None for none.

    `url` may be unix: and the path of a socket. `trusted` are the certificates to trust, by default those of this machine.
    """

    def __init__(
        self, url: str, model: str, api_key: str | None, timeout: float | None, trusted: ssl.SSLContext | None = None
    ) -> None:
        self.path = url.removeprefix("unix:") if url.startswith("unix:") else None
        parts = urlsplit(url if self.path is None else "http://localhost")
        self.trusted = trusted
        self.host, self.tls = parts.hostname or "", parts.scheme == "https"
        self.port = parts.port or (443 if self.tls else 80)
        self.model, self.timeout = model, timeout
        key = f"Authorization: Bearer {api_key}\r\n" if api_key else ""
        path = parts.path.rstrip("/").removesuffix("/v1")
        self._head = (
            f"POST {path}/v1/chat/completions HTTP/1.1\r\nHost: {parts.netloc}\r\n{key}Content-Type: application/json\r\n"
            "Accept: text/event-stream\r\nConnection: close\r\nContent-Length: "
        )

    async def ask(self, request: Request, on_first: Callable[[], None] | None = None) -> Answer:
        """Send `request` and read the answer to its end; what goes wrong is in its `error`, never raised."""
        kept: list[bytes] | None = [] if request.keep else None
        answer = Answer(request.n * request.max_tokens, time.perf_counter(), request.n, request.exact, kept)
        await self.send(request.body, answer, on_first)
        return answer

    async def send(self, body: Mapping[str, Any], answer: Answer, on_first: Callable[[], None] | None = None) -> None:
        """Stream the chat of `body` into `answer`; raises only what `answer.take` raises of its own."""
        error = None
        try:
            await asyncio.wait_for(self._exchange(self._request(body), answer, on_first), self.timeout)
        except asyncio.TimeoutError:
            error = f"no whole answer in {self.timeout:g} s"
        except ConnectionError as problem:
            # A stream that breaks in the middle counts as cut off, as one that ends early does.
            error = None if answer.status == 200 else type(problem).__name__
        except (OSError, ValueError, TypeError, AttributeError) as problem:  # JSON of another shape gives the last two
            error = f"{type(problem).__name__}: {problem}"
        answer.close(time.perf_counter(), error)

    def _request(self, body: Mapping[str, Any]) -> bytes:
        stream = {"model": self.model, "stream": True, "stream_options": {"include_usage": True}}
        data = json.dumps({**stream, **body}).encode()
        return f"{self._head}{len(data)}\r\n\r\n".encode() + data

    async def _exchange(self, request: bytes, answer: Answer, on_first: Callable[[], None] | None) -> None:
        if self.path is not None:
            reader, writer = await asyncio.open_unix_connection(self.path)
        else:
            reader, writer = await asyncio.open_connection(
                self.host, self.port, ssl=(self.trusted or True) if self.tls else None
            )
        try:
            writer.write(request)
            response = ResponseReader()
            failure: list[bytes] = []
            while not response.ended and (data := await reader.read(65536)):
                now = time.perf_counter()
                lines = response.feed(data)
                answer.status = response.status
                if answer.status != 200:
                    failure += lines
                    continue
                for line in lines:
                    answer.take(line, now)
                if on_first and answer.arrivals:
                    on_first()
                    on_first = None
        finally:
            writer.close()
        if answer.status == 0:
            raise ConnectionResetError
        if answer.status != 200:
            answer.error = f"HTTP {answer.status}: {_explain(b''.join([*failure, response.body]))}"


def _explain(body: bytes) -> str:
    try:
        return _message(json.loads(body))
    except ValueError:
        return body[:120].decode(errors="replace")


def _message(event: Any) -> str:
    error = event.get("error", event) if isinstance(event, dict) else event
    return str(error.get("message", error) if isinstance(error, dict) else error)[:120]
