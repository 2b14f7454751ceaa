"""`locallab serve` as a process."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai


@dataclasses.dataclass
class Process:
    url: str
    process: subprocess.Popen[str]

    @property
    def client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=300)

    @property
    def pid(self) -> int:
        """The id of the server's own process, a child of its supervisor."""
        return httpx.get(f"{self.url}/system/info").json()["process"]["pid"]  # type: ignore[no-any-return]

    def stats(self) -> dict[str, int]:
        return httpx.get(f"{self.url}/system/info").json()["model"]["stats"]  # type: ignore[no-any-return]


@contextlib.contextmanager
def serving(model: Path | str, *flags: str) -> Iterator[Process]:
    command = [
        sys.executable,
        "-m",
        "locallab",
        "serve",
        "--model",
        str(model),
        "--port",
        "0",
        "--log-level",
        "warning",
        *flags,
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    try:
        assert process.stdout
        line = process.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found, f"the server said {line!r}"
        yield Process(found.group(), process)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def counting(start: int) -> str:
    """Return consecutive numbers: their continuation is certain, whatever the order of additions in a batch."""
    return "Counting: " + ", ".join(str(n) for n in range(start, start + 25)) + ","
