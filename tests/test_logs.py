from __future__ import annotations

import io
import json
import logging
import re
import threading
import warnings

import pytest

from locallab import logs

log = logging.getLogger("locallab.test")


class Stuck(io.StringIO):
    """A stream nobody reads: writing waits until it is released."""

    def __init__(self) -> None:
        super().__init__()
        self.released = threading.Event()
        self.reached = threading.Event()
        self.wrote = threading.Event()

    def write(self, text: str) -> int:
        self.reached.set()
        assert self.released.wait(10)
        count = super().write(text)
        self.wrote.set()
        return count


def test_text_line() -> None:
    stream = io.StringIO()
    with logs.configured("info", "text", stream):
        log.info("loaded %s", "smollm2:135m")
        log.debug("not shown")
    assert stream.getvalue().endswith(" info locallab.test: loaded smollm2:135m\n")
    assert stream.getvalue().count("\n") == 1


def test_text_message_cannot_forge_a_line() -> None:
    stream = io.StringIO()
    with logs.configured("info", "text", stream):
        log.info("GET %s", "/x\n2026 error root: forged\x1b[31m")
    assert stream.getvalue().count("\n") == 1
    assert r"/x\x0a2026 error root: forged\x1b[31m" in stream.getvalue()


def test_the_id_of_the_request_at_hand_is_in_every_line() -> None:
    text, lines = io.StringIO(), io.StringIO()
    for stream, form in ((text, "text"), (lines, "json")):
        with logs.configured("info", form, stream):
            before = logs.request_id.set("abc-1")
            log.info("inside")
            logs.request_id.reset(before)
            log.info("outside")
    assert re.search(r" info locallab\.test \[abc-1\]: inside\n.* info locallab\.test: outside\n$", text.getvalue())
    assert [json.loads(line).get("request_id") for line in lines.getvalue().splitlines()] == ["abc-1", None]


MADE = "ll-" + "aB3_-" * 8 + "xyz"
HIDDEN = {
    "> Authorization: Bearer sesame": "> Authorization: Bearer [hidden]",
    "{'authorization': 'bearer sesame', 'a': 1}": "{'authorization': 'bearer [hidden]', 'a': 1}",
    "x-api-key: sesame": "x-api-key: [hidden]",
    '"api-key": "sesame"': '"api-key": "[hidden]"',
    "GET /x?api_key=sesame&y=1 HTTP": "GET /x?api_key=[hidden]&y=1 HTTP",
    "Sec-WebSocket-Protocol: locallab, locallab.key.sesame": "Sec-WebSocket-Protocol: locallab, locallab.key.[hidden]",
    f"the key {MADE}!": "the key ll-[hidden]",
    "api_key: is empty": "api_key: is empty",
    "ll-short, api-keys: three": "ll-short, api-keys: three",
}


@pytest.mark.parametrize(("message", "shown"), HIDDEN.items())
def test_keys_do_not_reach_the_log(message: str, shown: str) -> None:
    stream = io.StringIO()
    with logs.configured("info", "text", stream):
        log.info("%s", message)
    assert stream.getvalue().endswith(f": {shown}\n")


def test_json_line_carries_extra_and_exception() -> None:
    stream = io.StringIO()
    with logs.configured("info", "json", stream):
        try:
            raise ValueError("bad\nvalue")
        except ValueError:
            log.exception("failed", extra={"status": 500, "thing": object})
    line = json.loads(stream.getvalue())
    assert line["level"] == "error"
    assert line["logger"] == "locallab.test"
    assert line["message"] == "failed"
    assert line["status"] == 500
    assert "ValueError: bad\nvalue" in line["exception"]
    assert line["time"].endswith("Z")
    assert "msg" not in line and "args" not in line and "taskName" not in line


def test_arguments_are_read_when_logged() -> None:
    stream, numbers = Stuck(), [1]
    with logs.configured("info", "text", stream):
        log.info("first")
        assert stream.reached.wait(10)
        log.info("numbers %s", numbers)
        numbers.append(2)
        stream.released.set()
    assert "numbers [1]\n" in stream.getvalue()


def test_a_stuck_stream_blocks_nobody_and_what_is_dropped_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "BACKLOG", 5)
    stream = Stuck()
    with logs.configured("info", "text", stream):
        log.info("held")
        assert stream.reached.wait(10)
        for number in range(20):
            log.info("line %d", number)
        stream.released.set()
        while "line 4\n" not in stream.getvalue():
            assert stream.wrote.wait(10)
            stream.wrote.clear()
        log.info("after")
    assert "line 5" not in stream.getvalue()
    assert "after (15 earlier records were dropped)\n" in stream.getvalue()


def test_libraries_are_quiet_unless_debugging() -> None:
    for level, shown in (("info", False), ("debug", True)):
        stream = io.StringIO()
        with logs.configured(level, "text", stream):
            logging.getLogger("uvicorn.error").info("Started server process")
            logging.getLogger("uvicorn.error").warning("Invalid HTTP request")
        assert ("Started" in stream.getvalue()) is shown
        assert "Invalid HTTP request" in stream.getvalue()


def test_python_warnings_are_logged() -> None:
    stream = io.StringIO()
    with logs.configured("info", "text", stream), warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn("deprecated thing", DeprecationWarning, stacklevel=1)
        logging.captureWarnings(False)
    assert "deprecated thing" in stream.getvalue()


def test_root_logger_is_restored() -> None:
    root = logging.getLogger()
    before = root.level, root.handlers[:]
    with logs.configured("debug", "json", io.StringIO()):
        assert root.handlers != before[1]
    assert (root.level, root.handlers) == before
