"""The `locallab` command as a process."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.support.wait import LONG_PATIENCE

ROOT = Path(__file__).parents[2]


def command(*arguments: str, **environ: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "locallab", "serve", *arguments],
        cwd=ROOT,
        env=os.environ | environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def failed(*arguments: str, **environ: str) -> tuple[int, str]:
    """Return exit status and stderr of a command that ends by itself; nothing may be on stdout."""
    with command(*arguments, **environ) as process:
        out, err = process.communicate(timeout=LONG_PATIENCE)
    assert out == ""
    return process.returncode, err


@contextlib.contextmanager
def serving(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """Run a server; yield the process, its address and its banner."""
    with command(*arguments) as process:
        try:
            assert process.stdout
            text = ""
            while "print(" not in text:
                line = process.stdout.readline()
                assert line, process.stderr and process.stderr.read()
                text += line
            found = re.search(r"http://\S+", text)
            assert found
            yield process, found[0], text
        finally:
            process.kill()
