"""One run of the ngrok agent with one tunnel.

pyngrok downloads the agent, parses its log and calls its API. The agent is started here, because pyngrok would wait for a
silent agent forever, under a lock, leak a pipe for each failed start, and put a token of the environment on the command line.
"""

from __future__ import annotations

import contextlib
import json
import logging
from pathlib import Path
from typing import Any

import yaml
from pyngrok import installer, ngrok
from pyngrok.conf import PyngrokConfig
from pyngrok.exception import PyngrokError, PyngrokNgrokHTTPError
from pyngrok.log import NgrokLog

from locallab.errors import TunnelError
from locallab.tunnel.agent import LoggingAgent
from locallab.tunnel.ngrok_errors import explained
from locallab.tunnel.process import environment

NAME = "locallab"
CONFIG = "ngrok.yml"
READY = {"client session established", "tunnel session started"}
"""The agent's log messages once ngrok's servers have accepted it."""

log = logging.getLogger(__name__)


class Ngrok(LoggingAgent):
    """A running ngrok agent."""

    name = "ngrok"

    def __init__(self, target: str, token: str, domain: str | None, patience: float) -> None:
        self._target = target
        self._domain = domain
        self._api = ""
        self._awaited = set(READY)
        command = [str(_installed()), "start", "--none", "--log", "stdout", "--config", CONFIG]
        files = {CONFIG: yaml.safe_dump({"version": "2", "authtoken": token})}
        super().__init__(command, files, environment("NGROK_AUTHTOKEN", "LOCALLAB_NGROK_TOKEN"), patience, token)

    def open(self) -> str:
        try:
            self._wait(lambda: self._api and not self._awaited)
        finally:
            self._process.forget(CONFIG)
        wanted = {"name": NAME, "proto": "http", "addr": self._target, "schemes": ["https"], "inspect": False}
        if self._domain:
            wanted["domain"] = self._domain
        url = str(self._ask("POST", "", wanted)["public_url"])
        self._troubled = False
        return url.rstrip("/")

    def metrics(self) -> dict[str, int]:
        self._check()
        found = self._ask("GET", f"/{NAME}").get("metrics", {})
        return {"connections": found.get("conns", {}).get("count", 0), "requests": found.get("http", {}).get("count", 0)}

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
        return explained(reason, self._secret, self._domain)

    def _note(self, text: str) -> None:
        line = NgrokLog(text)
        if line.lvl in ("ERROR", "CRITICAL"):
            self._problem = line.err or line.msg or line.line
            self._troubled = True
        elif line.msg == "starting web service" and line.addr:
            self._api = f"http://{line.addr}"
        elif line.lvl == "NOTSET" and line.line:
            self._problem = self._problem or line.line  # not from the agent's log: the system could not run it
        self._awaited.discard(line.msg or "")


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
