"""Servers under test: launched from a command, or already running at a URL."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shlex
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

COMMANDS = {
    "llama-server": (
        "{binary} -m {model} --host 127.0.0.1 --port {port} -t {threads} -tb {threads} "
        "-np {clients} -c {context_total} --no-webui {mmproj_flags} {best}"
    ),
    "locallab": (
        "locallab serve --model {model} --port {port} --threads {threads} --context {context} "
        "--kv-tokens {context_total} --parallel 64 --no-access-log --log-level warning {mmproj_flags} {chat_flags}"
    ),
    "llama-cpp-python": (
        "{python} -m llama_cpp.server --model {model} --host 127.0.0.1 --port {port} --n_threads {threads} "
        "--n_threads_batch {threads} --n_ctx {context} --logits_all false --flash_attn true --verbose false"
    ),
}
PLACEHOLDERS = (
    "python",
    "binary",
    "model",
    "port",
    "threads",
    "clients",
    "context",
    "context_total",
    "scratch",
    "best",
    "chat_flags",
    "mmproj_flags",
)
POLL_SECONDS = 0.02
STOP_SECONDS = 15.0
HEADER_BYTES = 64 * 2**20  # enough for the metadata of a model


@dataclass(frozen=True, slots=True)
class Size:
    """What a server must hold at once: `clients` answers of at most `context` tokens with their prompts.

    `best`: flags that suit the C++ server in this case.
    """

    clients: int
    context: int
    scarcity: int = 1
    best: str = ""

    @property
    def total(self) -> int:
        """Tokens of the KV cache: one part in `scarcity` of what the answers may need, but a whole context."""
        return max(self.context, self.clients * self.context // self.scarcity)


def expand(template: str) -> str:
    """`template` with the commands of COMMANDS in the place of their names in braces."""
    for name, command in COMMANDS.items():
        template = template.replace(f"{{{name}}}", command)
    return template


def fill(template: str, **values: object) -> list[str]:
    """The command of `template`; raises ValueError for one that cannot be read or has an unknown placeholder.

    The values of {best}, {chat_flags} and {mmproj_flags} are as many arguments as they have words, by default none.
    """
    try:
        for name in ("best", "chat_flags", "mmproj_flags"):
            template = template.replace(f"{{{name}}}", str(values.get(name, "")))
        return [part.format(**values) for part in shlex.split(template)]
    except (KeyError, IndexError):
        known = ", ".join((*COMMANDS, *PLACEHOLDERS))
        raise ValueError(f"unknown placeholder in {template!r}; known: {known}") from None


def chat_flags(model: Path) -> str:
    """The flags with which LocalLab chats with a model that has no template, as the C++ server does by itself: in ChatML."""
    with model.open("rb") as file:
        return "" if b"tokenizer.chat_template" in file.read(HEADER_BYTES) else "--chat-template chatml"


class Server:
    """One server under test. Without a command it runs already: starting and stopping it does nothing."""

    def __init__(
        self,
        name: str,
        url: str = "",
        command: str | None = None,
        values: dict[str, object] | None = None,
        api_key: str | None = None,
    ) -> None:
        self.name, self.url, self.command = name, url, command
        self.api_key = api_key
        self.model = "default"
        self.launched = 0.0  # by time.perf_counter
        self.shown = ""  # its last command, with names instead of paths
        self._values = values or {}
        self._process: subprocess.Popen[bytes] | None = None
        self._log: Path | None = None

    def start(self, size: Size, patience: float, say: Callable[[str], None]) -> bool:
        """Launches the server and waits until it is ready; says so, or why it is not. Whether it is ready."""
        if self.command:
            self._launch(self.command, size, say)
        ready = self._wait(patience)
        if ready:
            self.model = self._model_id()
            pid = f" (pid {self._process.pid})" if self._process else ""
            say(f"{self.name}: ready at {self.url}{pid}")
        else:
            say(f"{self.name}: not ready, {self.state()}\n{self._tail()}")
        return ready

    def stop(self) -> None:
        """Ends a launched server and everything it started; does nothing for one that is not running."""
        process, self._process = self._process, None
        if process:
            for number in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(STOP_SECONDS)
        if self._log:
            self._log.unlink(missing_ok=True)
            self._log = None

    def state(self) -> str:
        """In words: no answer so far, or how a launched server ended."""
        code = self._process.poll() if self._process else None
        return "it does not answer" if code is None else f"ended with exit code {code}"

    @property
    def died(self) -> bool:
        """Whether a launched server has ended by itself."""
        return self._process is not None and self._process.poll() is not None

    @property
    def session(self) -> int | None:
        """The session that holds the processes of a launched server; None when there is none."""
        return self._process.pid if self._process else None

    def reset_peak(self) -> None:
        """Lets `peak_mib` count from here on; where the system does not allow that, it counts from the start."""
        if self._process:
            with contextlib.suppress(OSError):
                Path(f"/proc/{self._process.pid}/clear_refs").write_text("5")

    def peak_mib(self) -> float | None:
        """Peak resident memory of a launched server, in MiB."""
        if not self._process:
            return None
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{self._process.pid}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) / 1024
        return None

    def _launch(self, command: str, size: Size, say: Callable[[str], None]) -> None:
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        sizes = {"clients": size.clients, "context": size.context, "context_total": size.total, "best": size.best}
        arguments = fill(command, **self._values, **sizes, port=port)
        names = {name: os.path.basename(str(value)) for name, value in self._values.items()}
        self.shown = shlex.join(fill(command, **names, **sizes, port="PORT"))
        say(f"{self.name}: {shlex.join(arguments)}")
        handle, path = tempfile.mkstemp(prefix=f"bench-{self.name}-", suffix=".log")
        self._log = Path(path)
        with os.fdopen(handle, "wb") as log:
            self.launched = time.perf_counter()
            try:
                # A session of its own: Ctrl-C reaches this script alone, which then stops the server.
                self._process = subprocess.Popen(
                    arguments,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    env={**os.environ, "LOCALLAB_SUPERVISE": "0"},  # the process is the server, whose memory is measured
                )
            except OSError as error:
                say(f"{self.name}: cannot start: {error}")

    def _wait(self, patience: float) -> bool:
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            if self.died or (self.command and not self._process):
                return False
            if self._ready():
                return True
            time.sleep(POLL_SECONDS)
        return False

    def _ready(self) -> bool:
        health = self._get("/health")[0]
        return health == 200 or (health == 404 and self._get("/v1/models")[0] == 200)

    def _model_id(self) -> str:
        listed = self._get("/v1/models")[1]
        with contextlib.suppress(TypeError, KeyError, IndexError):
            return str(listed["data"][0]["id"])
        return self.model

    def _get(self, path: str) -> tuple[int, Any]:
        parts = urlsplit(self.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=10)
        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        try:
            connection.request("GET", parts.path.rstrip("/").removesuffix("/v1") + path, headers=headers)
            response = connection.getresponse()
            status, body = response.status, response.read()
        except (OSError, http.client.HTTPException):
            return 0, None
        finally:
            connection.close()
        try:
            return status, json.loads(body)
        except ValueError:
            return status, None

    def _tail(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines() if self._log else []
        return "\n".join(f"    {line}" for line in lines[-15:])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
