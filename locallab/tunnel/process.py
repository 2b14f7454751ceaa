"""The ngrok agent as a process: started so that it ends with us, however we end, and found again if it did not."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import psutil
import yaml

from locallab.settings import home

PARTING = 2.0
"""Seconds the agent gets to take leave of ngrok's servers."""

LAUNCH = """\
import ctypes, os, sys
getattr(ctypes.CDLL(None), "prctl", int)(1, 15)  # PR_SET_PDEATHSIG: SIGTERM when the thread that started this one ends
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


class Process:
    """A running agent with a private folder for its configuration: no token on a command line, none left on the disk.

    The thread that makes it must live as long as the agent is to live. `kill` may be called from any thread.
    """

    def __init__(self, agent: Path, token: str) -> None:
        """Raises OSError."""
        root = home() / "tunnel"
        root.mkdir(parents=True, exist_ok=True)
        sweep(root)
        self._folder = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=root))  # nobody else may look inside
        self._config = self._folder / "ngrok.yml"
        self._config.write_text(yaml.safe_dump({"version": "2", "authtoken": token}))
        arguments = ["start", "--none", "--log", "stdout", "--config", str(self._config)]
        self._popen = subprocess.Popen(
            [sys.executable, "-ISc", LAUNCH, str(os.getpid()), str(agent), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,  # not ours: it would show a token that is refused
            env={name: value for name, value in os.environ.items() if name not in ("NGROK_AUTHTOKEN", "LOCALLAB_NGROK_TOKEN")},
            start_new_session=True,  # Ctrl-C is for us: what runs may finish, and its answer needs the tunnel
            text=True,
            errors="replace",
        )

    @property
    def lines(self) -> Iterable[str]:
        """What the agent says, until it ends."""
        assert self._popen.stdout is not None
        return self._popen.stdout

    def ended(self) -> bool:
        return self._popen.poll() is not None

    def forget_token(self) -> None:
        """For when the agent has read it."""
        self._config.unlink(missing_ok=True)

    def kill(self) -> None:
        self._popen.kill()

    def end(self) -> None:
        """Ends the agent and waits for it."""
        self._popen.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(PARTING)
        self._popen.kill()
        self._popen.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def close(self) -> None:
        """For when the agent has ended and `lines` have been read."""
        assert self._popen.stdout is not None
        self._popen.stdout.close()


def sweep(root: Path) -> None:
    """Ends the agents, and removes the folders, of processes that were killed."""
    for folder in root.glob("*-*"):
        if not _has_owner(folder):
            _kill(folder)
            shutil.rmtree(folder, ignore_errors=True)


def _has_owner(folder: Path) -> bool:
    """Whether the process that made the folder still runs; one that is younger than the folder only has its number."""
    try:
        owner = psutil.Process(int(folder.name.partition("-")[0]))
        return owner.create_time() <= folder.stat().st_mtime + 1
    except (psutil.NoSuchProcess, ValueError, FileNotFoundError):
        return False


def _kill(folder: Path) -> None:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if str(folder / "ngrok.yml") in process.cmdline():
                process.kill()
