"""One run of the ngrok agent with one tunnel. Every failure is a TunnelError.

pyngrok downloads the agent, parses its log and calls its API. The agent is started here, because pyngrok would wait for a
silent agent forever, under a lock, leak a pipe for each failed start, and put a token of the environment on the command line.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from pathlib import Path
from typing import Any

from pyngrok import installer, ngrok
from pyngrok.conf import PyngrokConfig
from pyngrok.exception import PyngrokError, PyngrokNgrokHTTPError
from pyngrok.log import NgrokLog

from locallab.errors import TunnelError
from locallab.tunnel.ngrok_errors import explained, redacted
from locallab.tunnel.process import Process

NAME = "locallab"
READY = {"client session established", "tunnel session started"}
"""The agent's log messages once ngrok's servers have accepted it."""

log = logging.getLogger(__name__)


class Agent:
    """A running agent; `open` opens a tunnel. It must be created and closed in one thread, which must outlive it.

    `kill` may be called from any thread; pending calls then fail. Raises TunnelError.
    """

    def __init__(self, token: str, domain: str | None, patience: float) -> None:
        self._token = token
        self._domain = domain
        self._patience = patience
        self._changed = threading.Condition()  # guards the next five
        self._api = ""
        self._awaited = set(READY)
        self._problem = ""  # the last one in the log
        self._troubled = False
        self._ended = False
        path = _installed()
        try:
            self._process = Process(path, token)
        except OSError as error:
            raise TunnelError(f"the ngrok agent cannot be started: {error}") from None
        self._reader = threading.Thread(target=self._read, name="ngrok's log", daemon=True)
        self._reader.start()

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def open(self, target: str) -> str:
        """Open a tunnel to `target`, the server's own URL, and return its public URL. Raises TunnelError."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or (self._api and not self._awaited), self._patience)
            ready = self._api and not self._awaited and not self._ended
            problem = self._problem or ("it ended at once" if self._ended else "it does not come up")
        self._process.forget_token()
        if not ready:
            raise self._explained(problem)
        wanted = {"name": NAME, "proto": "http", "addr": target, "schemes": ["https"], "inspect": False}
        if self._domain:
            wanted["domain"] = self._domain
        url = str(self._ask("POST", "", wanted)["public_url"])
        self._troubled = False
        return url.rstrip("/")

    def troubled(self) -> bool:
        """Return whether the agent has logged errors since the last call."""
        troubled, self._troubled = self._troubled, False
        return troubled

    def metrics(self) -> dict[str, int]:
        """Return the counts of connections and requests. Raises TunnelError if the agent or the tunnel is gone."""
        if self._process.ended():
            raise self._explained(self._problem) if self._problem else TunnelError("the ngrok agent has ended")
        found = self._ask("GET", f"/{NAME}").get("metrics", {})
        return {"connections": found.get("conns", {}).get("count", 0), "requests": found.get("http", {}).get("count", 0)}

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        """End the agent and wait for it. May be called again."""
        self._process.end()
        self._reader.join()
        self._process.close()

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        try:
            return ngrok.api_request(f"{self._api}/api/tunnels{path}", method, body, timeout=self._patience)
        except PyngrokNgrokHTTPError as error:
            reason = error.body
            with contextlib.suppress(ValueError, KeyError, AttributeError):  # its first words only say that there was an error
                found = json.loads(error.body)
                reason = str(found.get("details", {}).get("err") or found["msg"])
            raise self._explained(reason) from None
        except (PyngrokError, OSError) as error:
            raise self._explained(self._problem if self._ended and self._problem else str(error)) from None

    def _explained(self, reason: str) -> TunnelError:
        return explained(reason, self._token, self._domain)

    def _read(self) -> None:
        for text in self._process.lines:
            line = NgrokLog(text)
            log.debug("ngrok: %s", redacted(line.line, self._token))
            with self._changed:
                if line.lvl in ("ERROR", "CRITICAL"):
                    self._problem = line.err or line.msg or line.line
                    self._troubled = True
                elif line.msg == "starting web service" and line.addr:
                    self._api = f"http://{line.addr}"
                elif line.lvl == "NOTSET" and line.line:
                    self._problem = self._problem or line.line  # not from the agent's log: the system could not run it
                self._awaited.discard(line.msg or "")
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()


def _installed() -> Path:
    """Return the agent's executable, PYNGROK_NGROK_PATH or pyngrok's own; downloads it if missing. Raises TunnelError."""
    path = Path(PyngrokConfig().ngrok_path)
    if not path.exists():
        log.info("downloading the ngrok agent to %s", path)
        try:
            installer.install_ngrok(str(path))
        except (PyngrokError, OSError) as error:
            reason = str(error).rpartition(": ")[2]
            raise TunnelError(f"the ngrok agent cannot be downloaded: {reason}; put it at {path} yourself") from None
    return path
