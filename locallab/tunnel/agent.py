"""What the tunnel asks of a provider's agent, and what the agents have in common: a process whose log is read."""

from __future__ import annotations

import abc
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from locallab.errors import TunnelError
from locallab.tunnel.process import Process

log = logging.getLogger(__name__)


class Agent(Protocol):
    """A running agent with one tunnel. It must be created and closed in one thread, which must outlive it; `kill` may be called
    from any, and pending calls then fail. Methods raise TunnelError."""

    def open(self) -> str:
        """Open the tunnel and return its public URL."""

    def troubled(self) -> bool:
        """Return whether the agent has told of errors since the last call."""

    def metrics(self) -> Mapping[str, int]:
        """Return its counts of connections and requests, as far as it has them; fails if the agent or the tunnel is gone."""

    def kill(self) -> None: ...

    def close(self) -> None:
        """End the agent and wait for it. May be called again."""


class LoggingAgent(abc.ABC):
    """An agent as a process, of which subclasses read the log. Every failure is a TunnelError."""

    name: str

    def __init__(
        self,
        command: Sequence[str],
        files: Mapping[str, str],
        environ: Mapping[str, str],
        patience: float,
        secret: str,
    ) -> None:
        self._patience = patience
        self._secret = secret
        self._changed = threading.Condition()  # guards the next three, and what `_note` changes
        self._problem = ""  # the last one in the log
        self._troubled = False
        self._ended = False
        try:
            self._process = Process(command, files, environ)
        except OSError as error:
            raise TunnelError(f"the {self.name} agent cannot be started: {error}") from None
        self._reader = threading.Thread(target=self._read, name="agent's log", daemon=True)
        self._reader.start()

    def troubled(self) -> bool:
        troubled, self._troubled = self._troubled, False
        return troubled

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        self._process.end()
        self._reader.join()
        self._process.close()

    def _wait(self, ready: Callable[[], object]) -> None:
        """Wait until `ready()`, which is called under the lock. Raises TunnelError if the agent ends, or takes too long."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or ready(), self._patience)
            failed = self._ended or not ready()
            problem = self._problem or ("it ended at once" if self._ended else "it does not come up")
        if failed:
            raise self._explained(problem)

    def _check(self) -> None:
        """Raise TunnelError if the process has ended."""
        if self._process.ended():
            raise self._explained(self._problem) if self._problem else TunnelError(f"the {self.name} agent has ended")

    @abc.abstractmethod
    def _explained(self, reason: str) -> TunnelError:
        """Return the error to raise for a message of the agent."""

    @abc.abstractmethod
    def _note(self, line: str) -> None:
        """Learn from a line of the log; called under the lock."""

    def _read(self) -> None:
        for line in self._process.lines:
            log.debug("%s: %s", self.name, redacted(line.rstrip(), self._secret))
            with self._changed:
                self._note(line)
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()


def redacted(text: str, secret: str) -> str:
    """Return the text without the secret, which agents repeat when it is rejected."""
    return text.replace(secret, "***") if secret else text
