"""The stand-in for ngrok where pyngrok finds it, and its behaviour."""

from __future__ import annotations

import os
import shlex
import signal
import stat
import sys
from pathlib import Path

import psutil
import pytest

TOKEN = "2abcDEFghiJKLmnoPQRstuVWXyz_0123456789abcdef"


class FakeNgrok:
    """Puts the stand-in where pyngrok looks; `goes` sets its behaviour from the next start on."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.goes("fine")
        self.path = folder / "ngrok"
        script = shlex.join([sys.executable, str(Path(__file__).with_name("fake_ngrok.py")), str(folder)])
        self.path.write_text(f'#!/bin/sh\nexec {script} "$@"\n')
        self.path.chmod(self.path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PYNGROK_NGROK_PATH", str(self.path))

    def goes(self, behaviour: str) -> None:
        (self.folder / "behaviour").write_text(behaviour)

    def silent(self, silent: bool) -> None:
        """Make the public address stop responding, or respond again."""
        (self.folder / "silent").touch() if silent else (self.folder / "silent").unlink()

    @property
    def pids(self) -> list[int]:
        """The process ids of all starts so far."""
        file = self.folder / "pids"
        return [int(line) for line in file.read_text().split()] if file.exists() else []

    @property
    def running(self) -> list[int]:
        return [pid for pid in self.pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the agent started last."""
        os.kill(self.pids[-1], number)
