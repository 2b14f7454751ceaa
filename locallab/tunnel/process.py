"""A tunnel's agent as a process, which ends with this one however it ends; leftovers of earlier ones are swept."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import psutil

from locallab import private_files
from locallab.settings import home

PARTING = 2.0
"""Seconds for the agent to disconnect from its servers."""

LAUNCH = """\
import ctypes, os, sys
getattr(ctypes.CDLL(None), "prctl", int)(1, 15)  # PR_SET_PDEATHSIG: SIGTERM when the thread that started this one ends
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


def environment(*without: str) -> dict[str, str]:
    """Return this process's environment without some variables."""
    return {name: value for name, value in os.environ.items() if name not in without}


class Process:
    """A running agent with a private folder for its configuration: a token is neither on a command line nor left on disk.

    The agent ends with the thread that creates it. `kill` may be called from any thread.
    """

    def __init__(self, command: Sequence[str], files: Mapping[str, str], environ: Mapping[str, str]) -> None:
        """Run `command`, whose words that name one of `files` become the file's path. Raises OSError."""
        root = home() / "tunnel"
        private_files.make_folder(root)
        sweep(root)
        self._folder = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=root))  # mode 0700
        for name, content in files.items():
            (self._folder / name).write_text(content)
        command = [str(self._folder / word) if word in files else word for word in command]
        self._popen = subprocess.Popen(
            [sys.executable, "-ISc", LAUNCH, str(os.getpid()), *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,  # not inherited: it would show a rejected token
            env=environ,
            start_new_session=True,  # no Ctrl-C: running requests finish through the tunnel
            text=True,
            errors="replace",
        )

    @property
    def lines(self) -> Iterable[str]:
        """The lines of the agent's output, until it ends."""
        assert self._popen.stdout is not None
        return self._popen.stdout

    def ended(self) -> bool:
        return self._popen.poll() is not None

    def forget(self, file: str) -> None:
        """Delete a file once the agent has read it."""
        (self._folder / file).unlink(missing_ok=True)

    def kill(self) -> None:
        self._popen.kill()

    def end(self) -> None:
        """End the agent and wait for it."""
        self._popen.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(PARTING)
        self._popen.kill()
        self._popen.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def close(self) -> None:
        """Close the output, after the agent has ended and `lines` are read."""
        assert self._popen.stdout is not None
        self._popen.stdout.close()


def sweep(root: Path) -> None:
    """Kill the agents and remove the folders of processes that were killed."""
    for folder in root.glob("*-*"):
        with contextlib.suppress(psutil.NoSuchProcess, ValueError, FileNotFoundError):
            owner = psutil.Process(int(folder.name.partition("-")[0]))
            if owner.create_time() <= folder.stat().st_mtime + 1:  # a younger process only reuses its owner's id
                continue
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if any(word.startswith(f"{folder}/") for word in process.cmdline()):
                    process.kill()
        shutil.rmtree(folder, ignore_errors=True)
