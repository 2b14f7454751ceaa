"""Another busy process: what a machine that is not a benchmark's alone is like."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

SPIN = "import os, sys\nwhile os.getppid() == int(sys.argv[1]):\n    sum(range(100_000))"
"""Ends with the process that started it, however that ends."""


@contextlib.contextmanager
def one_core() -> Iterator[int]:
    """Keep a core busy; yields the process id of what does."""
    with subprocess.Popen([sys.executable, "-c", SPIN, str(os.getpid())], start_new_session=True) as process:
        try:
            yield process.pid
        finally:
            process.kill()
