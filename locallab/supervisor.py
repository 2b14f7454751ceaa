"""The supervisor of `locallab serve`: a small process that keeps the listening socket and starts the server again when it dies.

The server is a fork of the supervisor, which imports nothing heavy and stays small. The first server binds the socket, as only
it knows the settings, and passes it to the supervisor; later ones inherit it, so that clients wait in its backlog meanwhile.
Standard output and error, terminal and process group are the same for both. SIGINT and SIGTERM are passed on; what a server
decides itself, such as its exit status after a wrong flag, passes through.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

from locallab.supervision import BlackBox, SetAside, Supervision

MINUTE = 60.0
SMALLER = 0.75
"""Share of the memory for models that they get after the system has killed a server that took too much."""
TRIES = 3
"""Loads of a model that may end in a death which is not surely the model's fault; if it surely is, the first one counts."""
READY = b"ready"
SHOWN = 8
"""Request ids in a log line."""

_STOPS = (signal.SIGINT, signal.SIGTERM)
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def wanted(arguments: Sequence[str], environ: Mapping[str, str]) -> bool:
    """Return whether the command is `serve`, and neither --no-supervise nor LOCALLAB_SUPERVISE turns its supervisor off."""
    switches = [each for each in arguments if each in ("--supervise", "--no-supervise")]
    off = environ.get("LOCALLAB_SUPERVISE", "").lower() in ("0", "false")
    return arguments[:1] == ["serve"] and (switches[-1] == "--supervise" if switches else not off)


class Child:
    """The side of the server: what it is told, and what it tells. Without a supervisor, `supervised` is false."""

    def __init__(
        self,
        supervision: Supervision | None = None,
        listener: socket.socket | None = None,
        link: socket.socket | None = None,
    ) -> None:
        self.supervision = supervision or Supervision(BlackBox())
        self.listener = listener
        self.supervised = link is not None
        self._link = link

    def bound(self, listener: socket.socket, max_deaths: int, log_format: str) -> None:
        """Pass the socket on, with the settings that the supervisor obeys."""
        if self._link is not None:
            socket.send_fds(self._link, [f"{max_deaths} {log_format}".encode()], [listener.fileno()])

    def ready(self) -> None:
        """Tell that requests are answered."""
        if self._link is not None:
            self._link.send(READY)
        else:
            notify("READY=1")


class Supervisor:
    """Runs servers one after another."""

    def __init__(self) -> None:
        self._box = BlackBox()
        self._listener: socket.socket | None = None
        self._path: tuple[str, os.stat_result] | None = None  # of a Unix socket
        self._max_deaths, self._log_format = 1, "text"
        self._restarts = 0
        self._announced = self._stopping = False
        self._deaths: list[tuple[float, str]] = []
        self._set_aside: dict[str, SetAside] = {}
        self._loaded: set[str] = set()
        self._tries: dict[str, int] = {}
        self._ram: int | None = None

    def run(self) -> Child:
        """Start servers until one's end is final. Returns in the process of each server; ends the supervisor's own process."""
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)  # what a dead server leaves behind becomes ours, to be ended
        self._awake, wake = socket.socketpair()
        self._awake.setblocking(False)
        wake.setblocking(False)
        signals = (*_STOPS, signal.SIGCHLD)
        before = [signal.signal(number, lambda number, frame: None) for number in signals]
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        while True:
            self._link, link = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._link.setblocking(False)
            self._box.clear()
            self._oom_kills = oom_kills()
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # a signal finds the server with handlers of its own
            supervisor, self._pid = os.getpid(), os.fork()
            if self._pid == 0:
                signal.set_wakeup_fd(-1)
                for number, handler in zip(signals, before, strict=True):
                    signal.signal(number, signal.SIG_IGN if handler is signal.SIG_IGN else signal.SIG_DFL)
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
                os.environ.setdefault("GGML_NO_BACKTRACE", "1")  # else llama.cpp starts gdb before it aborts
                _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
                if os.getppid() != supervisor:
                    os._exit(1)
                for each in (self._awake, wake, self._link):
                    each.close()
                return Child(self._told(), self._listener, link)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            link.close()
            self._after(os.waitstatus_to_exitcode(self._wait()))
            self._link.close()

    def _told(self) -> Supervision:
        cause = self._deaths[-1][1] if self._deaths else ""
        return Supervision(self._box, self._restarts, cause, dict(self._set_aside), self._ram, self._announced)

    def _wait(self) -> int:
        """Pass on signals and read messages until the server has ended; return its wait status."""
        poll = select.poll()
        poll.register(self._awake, select.POLLIN)
        poll.register(self._link, select.POLLIN)
        while True:
            status = self._reap()
            for descriptor, _ in poll.poll(None if status is None else 0):
                if descriptor == self._awake.fileno():
                    for number in self._awake.recv(4096):
                        if number in _STOPS:
                            self._stop(number)
                elif not self._read_messages():
                    poll.unregister(self._link)
            if self._stopping and self._listener is not None:
                self._listener.close()  # clients are refused once the server does the same
            if status is not None:
                return status

    def _reap(self) -> int | None:
        """Wait for what has ended, orphans of the server too; return the server's wait status once it has one."""
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid in (0, self._pid):
                return status if pid else None

    def _read_messages(self) -> bool:
        """Read what the server has sent; return False if it has closed its end."""
        with contextlib.suppress(BlockingIOError, ConnectionResetError):
            while True:
                message, listeners, _, _ = socket.recv_fds(self._link, 256, 1)
                for each in listeners:
                    os.set_inheritable(each, False)
                    self._listener = socket.socket(fileno=each)
                    if self._listener.family == socket.AF_UNIX:
                        path = self._listener.getsockname()
                        self._path = path, os.stat(path)
                if not message:
                    return False
                if message == READY:
                    self._announced = True
                    notify(f"READY=1\nSTATUS=restarts: {self._restarts}" if self._restarts else "READY=1")
                else:
                    deaths, self._log_format = message.decode().split()
                    self._max_deaths = int(deaths)
        return True

    def _stop(self, number: int) -> None:
        """Pass on the first signal; at a second one, end both processes at once."""
        if self._stopping:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            self._exit(128 + number)
        self._stopping = True
        notify("STOPPING=1")
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, number)

    def _after(self, code: int) -> None:
        """Exit if the end of the server is final, else learn from it. `code` is its exit status, or the negative signal."""
        end_children()
        if self._stopping:
            self._exit(code if code >= 0 else 128 - code)
        if code == 0 or (code > 0 and not self._announced):
            self._exit(code)
        cause, requests = self._cause(code), self._box.requests()
        if self._listener is None:
            sys.stderr.write(f"locallab: {cause} ended the server before it could listen\n")
            self._exit(128 - code)
        now = time.monotonic()
        self._deaths = [(moment, each) for moment, each in self._deaths if now - moment < MINUTE] + [(now, cause)]
        model = ", ".join(self._box.loaded) or "none"
        ids = ", ".join(requests[:SHOWN]) + (f" and {len(requests) - SHOWN} more" if len(requests) > SHOWN else "")
        doing = f"model: {model}; requests under way: {ids or 'none'}"
        if len(self._deaths) >= self._max_deaths:
            self._log(f"{cause} ended the server; {doing}")
            reasons = "; ".join(each for _, each in self._deaths)
            sys.stderr.write(f"locallab: the server died {len(self._deaths)} times within a minute: {reasons}\n")
            notify("STOPPING=1")
            self._exit(1)
        self._learn(code, cause, now)
        self._restarts += 1
        self._log(f"{cause} ended the server, which is started again; {doing}")

    def _cause(self, code: int) -> str:
        """Describe what ended the server."""
        name = f"exit status {code}" if code > 0 else _signal_name(-code)
        if code == -signal.SIGKILL and self._out_of_memory():
            name += " (out of memory)"
        return f"{name} while loading {self._box.loading}" if self._box.loading else name

    def _out_of_memory(self) -> bool:
        return oom_kills() > self._oom_kills

    def _learn(self, code: int, cause: str, now: float) -> None:
        """Give models less memory if they took too much, and set one aside whose load kills servers."""
        out_of_memory = code == -signal.SIGKILL and self._out_of_memory()
        if out_of_memory and self._box.ram:
            self._ram = int(SMALLER * min(self._box.ram, self._ram or self._box.ram))
        for model in self._box.loaded:
            self._loaded.add(model)
            self._tries.pop(model, None)
            self._set_aside.pop(model, None)
        if model := self._box.loading:
            # SIGKILL comes from outside, and so may another signal if the model could be loaded before.
            doubtful = code == -signal.SIGKILL or model in self._loaded
            self._tries[model] = self._tries.get(model, 0) + 1
            if not doubtful or self._tries[model] >= TRIES:
                self._set_aside[model] = SetAside(f"its load ended the server: {_before_loading(cause)}", now + MINUTE)

    def _log(self, message: str) -> None:
        """Write one line as `locallab.logs` does, which is too heavy to import here."""
        now = time.time()
        if self._log_format == "json":
            import json

            moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1e6):06}Z"
            line = json.dumps({"time": moment, "level": "error", "logger": __name__, "message": message})
        else:
            printable = "".join(each if each.isprintable() else "?" for each in message)
            moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now))
            line = f"{moment}.{int(now % 1 * 1000):03} error {__name__}: {printable}"
        with contextlib.suppress(OSError):
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()

    def _exit(self, status: int) -> NoReturn:
        end_children()
        if self._path:  # a server that was killed leaves it
            with contextlib.suppress(OSError):
                if os.path.samestat(os.stat(self._path[0]), self._path[1]):
                    os.unlink(self._path[0])
        sys.exit(status)


def _before_loading(cause: str) -> str:
    return cause.partition(" while loading ")[0]


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def notify(state: str) -> None:
    """Tell the service manager, if there is one, as sd_notify(3) does."""
    if address := os.environ.get("NOTIFY_SOCKET"):
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)


def oom_kills(read: Callable[[str], str] | None = None) -> int:
    """Count the processes that the kernel has killed for want of memory: those of the machine, and of this control group."""
    read = read or _text
    files = ["/proc/vmstat"]
    for line in read("/proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            files += [f"/sys/fs/cgroup{folder}/memory.events" for folder in {path.rstrip("/"), ""}]
        elif "memory" in controllers.split(","):
            files += [f"/sys/fs/cgroup/memory{folder}/memory.oom_control" for folder in {path.rstrip("/"), ""}]
    lines = [line.split() for file in files for line in read(file).splitlines()]
    return sum(int(words[1]) for words in lines if words[:1] == ["oom_kill"])


def end_children() -> None:
    """Kill the children of this process and wait for them: what a dead server has left behind."""
    while pids := [pid for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))) if _parent(pid) == os.getpid()]:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in pids:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def _parent(pid: int) -> int:
    """Return the parent of the process; 0 if there is no such process."""
    fields = _text(f"/proc/{pid}/stat").rpartition(")")[2].split()  # after the name: state, parent, ...
    return int(fields[1]) if fields else 0


def _text(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""


def _prctl(option: int, value: int) -> None:
    """Set an option of this process where the system has it."""
    import ctypes

    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(option, value)
