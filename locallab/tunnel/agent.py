"""One run of the ngrok agent with one tunnel: every failure is a TunnelError.

pyngrok fetches the agent, reads its log and asks its API. We start it ourselves: pyngrok would wait for a silent agent without
end, under a lock, keep a pipe open for each failed start, and put a token of the environment on the command line.
"""

from __future__ import annotations

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
"""What the agent says once ngrok's servers have let it in."""

log = logging.getLogger(__name__)


class Agent:
    """Starts the agent; `open` opens a tunnel. To be made and closed in one thread, which must outlive it.

    `kill` may be called from any thread; what waits for the agent then fails. Raises TunnelError.
    """

    def __init__(self, token: str, domain: str | None, patience: float) -> None:
        self._token = token
        self._domain = domain
        self._patience = patience
        self._news = threading.Condition()  # over the next five
        self._api = ""
        self._awaited = set(READY)
        self._said = ""  # the last trouble
        self._troubled = False
        self._ended = False
        self._process = _start(_installed(), token)
        self._reader = threading.Thread(target=self._read, name="ngrok's log", daemon=True)
        self._reader.start()

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def open(self, target: str) -> str:
        """Opens a tunnel to `target`, the server's own URL, and returns its public one. Raises TunnelError."""
        self._wait()
        wanted = {"name": NAME, "proto": "http", "addr": target, "schemes": ["https"], "inspect": False}
        if self._domain:
            wanted["domain"] = self._domain
        url = str(self._ask("POST", "", wanted)["public_url"])
        self._troubled = False
        return url.rstrip("/")

    def troubled(self) -> bool:
        """Whether the agent has told of trouble since this was asked last."""
        told, self._troubled = self._troubled, False
        return told

    def metrics(self) -> dict[str, int]:
        """Connections and requests since the tunnel was opened. Raises TunnelError when the agent or the tunnel is gone."""
        if self._process.ended():
            raise self._explained(self._said) if self._said else TunnelError("the ngrok agent has ended")
        found = self._ask("GET", f"/{NAME}").get("metrics", {})
        return {"connections": found.get("conns", {}).get("count", 0), "requests": found.get("http", {}).get("count", 0)}

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        """Ends the agent and waits for it. May be called again."""
        self._process.end()
        self._reader.join()
        self._process.close()

    def _wait(self) -> None:
        """Until the agent can open a tunnel."""
        with self._news:
            self._news.wait_for(lambda: self._ended or (self._api and not self._awaited), self._patience)
            ready = self._api and not self._awaited and not self._ended
            said = self._said or ("it ended at once" if self._ended else "it does not come up")
        self._process.forget_token()
        if not ready:
            raise self._explained(said)

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        try:
            return ngrok.api_request(f"{self._api}/api/tunnels{path}", method, body, timeout=self._patience)
        except PyngrokNgrokHTTPError as error:
            raise self._explained(_detail(error.body)) from None
        except (PyngrokError, OSError) as error:
            raise self._explained(self._said if self._ended and self._said else str(error)) from None

    def _explained(self, said: str) -> TunnelError:
        return explained(said, self._token, self._domain)

    def _read(self) -> None:
        for text in self._process.lines:
            line = NgrokLog(text)
            log.debug("ngrok: %s", redacted(line.line, self._token))
            with self._news:
                self._hear(line)
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    def _hear(self, line: NgrokLog) -> None:
        if line.lvl in ("ERROR", "CRITICAL"):
            self._said = line.err or line.msg or line.line
            self._troubled = True
        elif line.msg == "starting web service" and line.addr:
            self._api = f"http://{line.addr}"
        elif line.lvl == "NOTSET" and line.line:
            self._said = self._said or line.line  # not from the agent's log: the system could not run it
        self._awaited.discard(line.msg or "")


def _installed() -> Path:
    """The agent's executable: PYNGROK_NGROK_PATH, else where pyngrok keeps it; fetched if it is not there."""
    path = Path(PyngrokConfig().ngrok_path)
    if not path.exists():
        log.info("downloading the ngrok agent to %s", path)
        try:
            installer.install_ngrok(str(path))
        except (PyngrokError, OSError) as error:
            reason = str(error).rpartition(": ")[2]
            raise TunnelError(f"the ngrok agent cannot be downloaded: {reason}; put it at {path} yourself") from None
    return path


def _start(agent: Path, token: str) -> Process:
    try:
        return Process(agent, token)
    except OSError as error:
        raise TunnelError(f"the ngrok agent cannot be started: {error}") from None


def _detail(body: str) -> str:
    """The reason in an error of the agent's API, whose first words only say that there was one."""
    try:
        found = json.loads(body)
        return str(found.get("details", {}).get("err") or found["msg"])
    except (ValueError, KeyError, AttributeError):
        return body
