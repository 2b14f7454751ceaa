"""The ngrok agent as a process, which ends with this one however it ends; leftovers of earlier ones are swept."""

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

from locallab import private_files
from locallab.settings import home

PARTING = 2.0
"""Seconds for the agent to disconnect from ngrok's servers."""

LAUNCH = """\
import ctypes, os, sys
getattr(ctypes.CDLL(None), "prctl", int)(1, 15)  # PR_SET_PDEATHSIG: SIGTERM when the thread that started this one ends
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


class Process:
    """A running agent with a private folder for its configuration: the token is neither on a command line nor left on disk.

    The agent ends with the thread that creates it. `kill` may be called from any thread.
    """

    def __init__(self, agent: Path, token: str) -> None:
        """Raises OSError."""
        root = home() / "tunnel"
        private_files.make_folder(root)
        sweep(root)
        self._folder = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=root))  # mode 0700
        self._config = self._folder / "ngrok.yml"
        self._config.write_text(yaml.safe_dump({"version": "2", "authtoken": token}))
        arguments = ["start", "--none", "--log", "stdout", "--config", str(self._config)]
        self._popen = subprocess.Popen(
            [sys.executable, "-ISc", LAUNCH, str(os.getpid()), str(agent), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,  # not inherited: it would show a rejected token
            env={name: value for name, value in os.environ.items() if name not in ("NGROK_AUTHTOKEN", "LOCALLAB_NGROK_TOKEN")},
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

    def forget_token(self) -> None:
        """Delete the configuration once the agent has read it."""
        self._config.unlink(missing_ok=True)

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
                if str(folder / "ngrok.yml") in process.cmdline():
                    process.kill()
        shutil.rmtree(folder, ignore_errors=True)
