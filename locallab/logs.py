"""Logging to stderr, a line per record, as text or JSON; a thread of its own writes, so that no caller waits."""

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
"""Maximum records waiting for the writer; when nobody reads stderr, further ones are dropped and counted."""

NOISY = ("uvicorn", "asyncio", "httpx", "httpx2", "httpcore", "httpcore2", "urllib3", "huggingface_hub", "filelock", "pyngrok")
"""Loggers of libraries, whose reports of progress are useful for debugging only."""

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""Id of the current request; records logged meanwhile carry it as `request_id`."""

_KEYS = re.compile(
    r"""(?ix) ( \b authorization ['"]? :\ * ['"]? bearer\ + | \b (?:x-)?api-key ['"]? :\ * ['"]?
    | \b api_key = | \b locallab\.key\. | \b ll- (?=[\w-]{43}) ) [^\s'"&,;]+"""
)
"""API keys as they appear in requests, which the server's libraries log at debug level."""

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(9), *range(10, 32), 127)}


class TextFormatter(logging.Formatter):
    """Formats `2026-01-31 12:00:00.123 info locallab.x [request id]: message`, with control characters escaped.

    A message cannot forge a line.
    """

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.datetime.fromtimestamp(record.created).isoformat(" ", "milliseconds")
        about = f" [{record.request_id}]" if hasattr(record, "request_id") else ""
        line = f"{moment} {record.levelname.lower()} {record.name}{about}: {record.getMessage().translate(_ESCAPES)}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """Formats a JSON object: time (UTC), level, logger, message, request_id, the caller's `extra`, and the exception."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {name: value for name, value in vars(record).items() if name not in _STANDARD}
        entry["time"] = datetime.datetime.fromtimestamp(record.created, datetime.timezone.utc)
        entry.update(level=record.levelname.lower(), logger=record.name, message=record.getMessage())
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(entry, enc_hook=str).decode()


class _Enqueue(QueueHandler):
    """Queues records in the caller's thread without ever waiting."""

    def __init__(self, records: queue.SimpleQueue[Any]) -> None:
        super().__init__(records)
        self.records = records
        self.dropped = 0

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """Format the message now, since its arguments may change before it is written, and hide API keys."""
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
    """Send every record of `level` or above to `stream` (default: stderr), in the `form` "text" or "json".

    On exit, waiting records are written and the root logger is restored.
    """
    records: queue.SimpleQueue[Any] = queue.SimpleQueue()
    writer = logging.StreamHandler(stream or sys.stderr)
    writer.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    handler, listener = _Enqueue(records), QueueListener(records, writer)
    root = logging.getLogger()
    before = root.level, root.handlers[:]
    root.setLevel(level.upper())
    root.handlers[:] = [handler]
    logging.captureWarnings(True)
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.NOTSET if level == "debug" else logging.WARNING)
    listener.start()
    try:
        yield
    finally:
        listener.stop()
        root.setLevel(before[0])
        root.handlers[:] = before[1]
        logging.captureWarnings(False)
        for name in NOISY:
            logging.getLogger(name).setLevel(logging.NOTSET)
