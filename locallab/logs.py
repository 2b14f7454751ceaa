"""Logging: one line per record on stderr, as text or JSON, written by a thread of its own so that no caller waits for it."""

from __future__ import annotations

import contextlib
import datetime
import logging
import queue
import re
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from logging.handlers import QueueHandler, QueueListener
from typing import Any, TextIO

import msgspec

BACKLOG = 10_000
"""Records that may wait for the writer; when nobody reads stderr, further ones are dropped and counted."""

NOISY = ("uvicorn", "asyncio", "httpx", "httpx2", "httpcore", "httpcore2", "urllib3", "huggingface_hub", "filelock", "pyngrok")
"""Loggers of libraries: their progress reports are of use only when debugging."""

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The id of the request that is being handled here; every record logged meanwhile carries it as `request_id`."""

_KEYS = re.compile(
    r"""(?ix) ( \b authorization ['"]? :\ * ['"]? bearer\ + | \b (?:x-)?api-key ['"]? :\ * ['"]?
    | \b api_key = | \b locallab\.key\. | \b ll- (?=[\w-]{43}) ) [^\s'"&,;]+"""
)
"""API keys as they stand in requests, which the libraries of the server log when debugging."""

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(9), *range(10, 32), 127)}


class TextFormatter(logging.Formatter):
    """`2026-01-31 12:00:00.123 info locallab.x [request id]: message`.

    Control characters are escaped: a message cannot forge a line.
    """

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.datetime.fromtimestamp(record.created).isoformat(" ", "milliseconds")
        about = f" [{record.request_id}]" if hasattr(record, "request_id") else ""
        line = f"{moment} {record.levelname.lower()} {record.name}{about}: {record.getMessage().translate(_ESCAPES)}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, request_id, the caller's `extra`, and the exception."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {name: value for name, value in vars(record).items() if name not in _STANDARD}
        entry["time"] = datetime.datetime.fromtimestamp(record.created, datetime.timezone.utc)
        entry.update(level=record.levelname.lower(), logger=record.name, message=record.getMessage())
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(entry, enc_hook=str).decode()


class _Enqueue(QueueHandler):
    """Takes a record in the caller's thread without ever waiting."""

    def __init__(self, records: queue.SimpleQueue[Any]) -> None:
        super().__init__(records)
        self.records = records
        self.dropped = 0

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """Fixes the message now: its arguments may change, or be freed, before the writer sees them. Keys are taken out."""
        record.msg, record.args = _KEYS.sub(r"\1[hidden]", record.getMessage()), None
        if identity := request_id.get():
            record.request_id = identity
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        if self.records.qsize() >= BACKLOG:
            self.dropped += 1
            return
        if self.dropped:
            record.msg, self.dropped = f"{record.msg} ({self.dropped} earlier records were dropped)", 0
        self.records.put_nowait(record)


@contextlib.contextmanager
def configured(level: str, form: str, stream: TextIO | None = None) -> Iterator[None]:
    """Sends every record of `level` or above to `stream` (default: stderr), in the `form` "text" or "json".

    On leaving, what waits is written and the root logger is as before.
    """
    records: queue.SimpleQueue[Any] = queue.SimpleQueue()
    writer = logging.StreamHandler(stream or sys.stderr)
    writer.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    handler, listener = _Enqueue(records), QueueListener(records, writer)
    with _installed(handler, level):
        listener.start()
        try:
            yield
        finally:
            listener.stop()


@contextlib.contextmanager
def _installed(handler: logging.Handler, level: str) -> Iterator[None]:
    root = logging.getLogger()
    before = root.level, root.handlers[:]
    root.setLevel(level.upper())
    root.handlers[:] = [handler]
    logging.captureWarnings(True)
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.NOTSET if level == "debug" else logging.WARNING)
    try:
        yield
    finally:
        root.setLevel(before[0])
        root.handlers[:] = before[1]
        logging.captureWarnings(False)
        for name in NOISY:
            logging.getLogger(name).setLevel(logging.NOTSET)
