"""Rough use of a server by `scripts/soak --rough`: its verdicts, and one very short run."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support import tiny_gguf

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

from benchlib.raw_http import Exchange, exchange, request  # noqa: E402
from benchlib.rough import NONSENSES, Rough, Seen, problems, report  # noqa: E402

IDLE = {"pid": 1, "resident": 200 << 20, "descriptors": 20, "sequences": 0, "cells": 0}


def rough() -> Rough:
    return Rough(Namespace(seed=0), 0, {"admin": "a", "use": "b"})


def got(status: int, body: bytes = b"", began: float = 10.0, **headers: str) -> Exchange:
    return Exchange(began, began + 1, status, headers, body)


@pytest.mark.parametrize(
    ("found", "wrong"),
    [
        (got(500, b"boom"), ["500 for x: boom"]),
        (got(502), ["502 for x: "]),
        (got(503), ["503 for x: "]),
        (Exchange(10.0, 11.0, 503, {"retry-after": "2"}), []),
        (got(0), ["no answer for x within 1.0 s"]),
        (got(0, began=20.0), []),
        (got(500, began=20.0), ["500 for x: "]),
        (got(200), []),
        (got(404), []),
    ],
    ids=["500", "502", "503 alone", "503 with Retry-After", "silence", "killed", "500 by a kill", "fine", "refused"],
)
def test_what_is_wrong(found: Exchange, wrong: list[str]) -> None:
    use = rough()
    use.seen.spans.append((20.5, 25.0))
    use._saw("x", found, lambda found: None)
    for what, each, problem in use._pending:
        use._judge(what, each, problem(each))
    assert list(use.seen.wrong) == wrong


def test_what_is_cut_off_is_wrong_unless_a_kill_did_it() -> None:
    use = rough()
    use.seen.spans.append((20.5, 25.0))
    for began in (10.0, 20.0):
        use._judge("x", got(200, began=began), "cut off: /x")
    assert (use.seen.wrong, use.seen.counts["lost by a kill"]) == ({"cut off: /x": 1}, 1)


@pytest.mark.parametrize(
    ("after", "parents", "tracebacks", "told"),
    [
        ({}, (7, 7), 0, []),
        ({"sequences": 2}, (7, 7), 0, ["2 sequences left"]),
        ({"cells": 9}, (7, 7), 0, ["9 cells left"]),
        ({"resident": 300 << 20}, (7, 7), 0, ["the child has grown by 100 MiB"]),
        ({"descriptors": 30}, (7, 7), 0, ["the child has 10 more descriptors"]),
        ({}, (7, 8), 0, ["the supervisor has 1 more descriptors"]),
        ({}, (7, 7), 3, ["3 tracebacks in the log"]),
    ],
    ids=["nothing", "sequences", "cells", "memory", "descriptors", "the supervisor's", "tracebacks"],
)
def test_what_is_left(after: dict[str, Any], parents: tuple[int, int], tracebacks: int, told: list[str]) -> None:
    seen = Seen(health=[(0.0, 0.1)])
    assert problems(seen, IDLE, {**IDLE, **after}, parents, tracebacks, 64.0) == told
    assert problems(Seen(), IDLE, IDLE, (7, 7), 0, 64.0) == ["/health never answered"]


def test_the_worst_health_is_that_of_a_server_that_runs(capsys: pytest.CaptureFixture[str]) -> None:
    report(Seen(health=[(5.0, 0.25), (21.0, 9.0)], spans=[(20.0, 24.5)]), IDLE, IDLE, (7, 7))
    lines = capsys.readouterr().out.splitlines()
    assert "| worst `/health` otherwise | 0.250 s |" in lines
    assert "| longest time without `/health` after a kill | 4.50 s |" in lines


class TestExchange:
    def ask(self, *parts: bytes, sent: bytes = b"GET / HTTP/1.1\r\n\r\n", **options: Any) -> Exchange:
        """Talk to a server that answers with these parts."""

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            for part in parts:
                writer.write(part)
                await writer.drain()
            writer.close()

        async def main() -> Exchange:
            server = await asyncio.start_server(answer, "127.0.0.1", 0)
            async with server:
                return await exchange(server.sockets[0].getsockname()[1], sent, 10.0, **options)

        return asyncio.run(main())

    @pytest.mark.parametrize(
        ("parts", "status", "body"),
        [
            ([b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"], 200, b"{}"),
            (
                [b"HTTP/1.1 200 OK\r\nTransfer-", b"Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\n", b"de\r\n0\r\n\r\n"],
                200,
                b"abcde",
            ),
            ([b"HTTP/1.1 503 No\r\n\r\n"], 503, b""),
            ([b"HTTP/1.1"], 0, b""),
            ([], 0, b""),
        ],
        ids=["plain", "chunks", "no body", "half a head", "nothing"],
    )
    def test_reads_what_comes(self, parts: Sequence[bytes], status: int, body: bytes) -> None:
        found = self.ask(*parts)
        assert (found.status, found.body, found.left) == (status, body, False)

    def test_leaves_in_the_middle(self) -> None:
        found = self.ask(b"HTTP/1.1 200 OK\r\n\r\n", b"a" * 500_000, leave_after=100)
        assert found.left and found.status == 200

    def test_nobody_there(self) -> None:
        assert asyncio.run(exchange(1, b"", 5.0)).status == 0


def test_a_request_says_what_it_has() -> None:
    sent = request("POST", "/x", b"{}", {"a": "b"})
    assert sent.startswith(b"POST /x HTTP/1.1\r\n") and sent.endswith(b"\r\na: b\r\n\r\n{}") and b"content-length: 2" in sent
    assert len(set(NONSENSES)) == len(NONSENSES)


def test_a_very_short_run_of_a_real_server(tmp_path: Path) -> None:
    model = tiny_gguf.write(tmp_path / "tiny.gguf", "llama")
    flags = ["--minutes", "0.05", "--kill-every", "1", "--clients", "3", "--context", "512", "--threads", "1"]
    command = [sys.executable, str(SCRIPTS / "soak"), "--rough", "--model", str(model), *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| sequences left | 0 |" in done.stdout and "| cells left | 0 |" in done.stdout
    assert "| 5xx but 503 with Retry-After | 0 |" in done.stdout
    assert "| kills of the child | 0 |" not in done.stdout
