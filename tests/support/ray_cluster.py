"""`locallab serve --cluster` as a process, with all that Ray starts for it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from tests.support.wait import until

UP = 240.0
"""Seconds for Ray and the replicas to start beside other tests."""


class RayCluster:
    """A running cluster, its file and its log."""

    def __init__(self, url: str, path: Path, process: subprocess.Popen[str], log: list[str]) -> None:
        self.url = url
        self.path = path
        self.process = process
        self.log = log

    def replicas(self) -> list[dict[str, Any]]:
        return httpx.get(f"{self.url}/system/info", timeout=60).json()["replicas"]  # type: ignore[no-any-return]

    def has(self, count: int, seconds: float = UP) -> list[dict[str, Any]]:
        """Wait until there are so many replicas, and return them."""
        deadline = time.monotonic() + seconds
        while len(found := self.replicas()) != count:
            assert time.monotonic() < deadline, found
            time.sleep(0.2)
        return found

    def change(self, config: dict[str, Any]) -> None:
        """Replace the file, and wait until the cluster has followed or refused."""
        said = len(self.log)
        write(self.path, config)
        until(lambda: any("has changed" in line for line in self.log[said:]), UP)


def write(path: Path, config: dict[str, Any]) -> None:
    other = path.with_suffix(".new")
    other.write_text(yaml.safe_dump(config))
    os.replace(other, path)


@contextlib.contextmanager
def clustered(folder: Path, config: dict[str, Any], *flags: str, **environment: str) -> Iterator[RayCluster]:
    """Run a cluster; at the end it is stopped as by Ctrl-C, and nothing of it is left."""
    path = folder / "cluster.yaml"
    write(path, config)
    command = [sys.executable, "-m", "locallab", "serve", "--cluster", str(path), "--port", "0", "--no-rate-limit", *flags]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
    )
    log: list[str] = []

    def read() -> None:
        assert process.stdout is not None
        log.extend(iter(process.stdout.readline, ""))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    family: list[psutil.Process] = []
    try:
        until(lambda: any("listens on" in line for line in log) or process.poll() is not None, UP)
        found = re.search(r"http://[\d.:]+", next((line for line in log if "listens on" in line), ""))
        assert found, "".join(log)
        yield RayCluster(found.group(), path, process, log)
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0, "".join(log)
        assert not psutil.wait_procs(family, timeout=30)[1], "it left processes behind"
    except BaseException:
        print("".join(log[-200:]))
        raise
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            family = psutil.Process(process.pid).children(recursive=True) or family
        for each in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        process.kill()
        process.wait()
        reader.join(10)
        assert process.stdout is not None
        process.stdout.close()
