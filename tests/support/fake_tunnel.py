"""The stand-ins for ngrok and cloudflared where they are found, and their behaviour; an app behind a tunnel."""

from __future__ import annotations

import base64
import json
import os
import queue
import shlex
import signal
import stat
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.wait import PATIENCE

News = queue.Queue[Any]

CLOUDFLARE_TOKEN = base64.b64encode(json.dumps({"a": "account", "t": "tunnel", "s": "c2VjcmV0"}).encode()).decode()
TOKEN = "2abcDEFghiJKLmnoPQRstuVWXyz_0123456789abcdef"


class FakeNgrok:
    """Puts the stand-in where pyngrok looks; `goes` sets its behaviour from the next start on."""

    script = "fake_ngrok.py"
    variable = "PYNGROK_NGROK_PATH"

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.goes("fine")
        self.path = folder / self.script.removeprefix("fake_").removesuffix(".py")
        script = shlex.join([sys.executable, str(Path(__file__).with_name(self.script)), str(folder)])
        self.path.write_text(f'#!/bin/sh\nexec {script} "$@"\n')
        self.path.chmod(self.path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv(self.variable, str(self.path))

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


class FakeCloudflared(FakeNgrok):
    """The same for cloudflared."""

    script = "fake_cloudflared.py"
    variable = "LOCALLAB_CLOUDFLARED_PATH"


class App:
    """Answers health checks, streams and echoes; records what came."""

    def __init__(self) -> None:
        self.paths: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for event in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{event}.complete"})
            return
        self.paths.append(scope["path"])
        await (self.echo(receive, send) if scope["type"] == "websocket" else self.answer(scope, receive, send))

    async def answer(self, scope: Any, receive: Any, send: Any) -> None:
        status = 403 if scope["path"] == "/health/live" and self.paths.count("forbidden") else 200
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/event-stream")]})
        for number in range(3 if scope["path"] == "/stream" else 0):
            await send({"type": "http.response.body", "body": b"data: %d\n\n" % number, "more_body": True})
            assert (await receive())["type"] == "http.request" if number == 0 else True
        await send({"type": "http.response.body", "body": b"done"})

    async def echo(self, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": message["text"]})


def heard(news: News) -> Any:
    return news.get(timeout=PATIENCE)
