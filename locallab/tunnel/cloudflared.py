"""One run of cloudflared, Cloudflare's agent, with one tunnel.

Without a token it is a quick tunnel: no account, a new name at each start, and by Cloudflare's terms for trying things out.
With one it is a tunnel of an account, whose public host name leads to this server by what is configured there.
"""

from __future__ import annotations

import os
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Mapping

from locallab.errors import TunnelError
from locallab.tunnel.agent import LoggingAgent, redacted
from locallab.tunnel.process import environment

WHERE = "github.com/cloudflare/cloudflared/releases"
CONFIG = "cloudflared.yml"
KEPT = ("TUNNEL_TRANSPORT_PROTOCOL", "TUNNEL_EDGE_IP_VERSION", "TUNNEL_REGION", "TUNNEL_POST_QUANTUM")
"""The agent's own variables that say how it connects; others would change what is opened."""

KNOWN = (
    (
        r"Tunnel token is not valid",
        "LOCALLAB_CLOUDFLARED_TOKEN is not the token of a Cloudflare tunnel; the tunnel's page at one.dash.cloudflare.com "
        "has it",
        True,
    ),
    (
        r"Unauthorized",
        "Cloudflare refuses this token: the tunnel was deleted, or has another token now; its page at one.dash.cloudflare.com "
        "has it",
        True,
    ),
    (
        r"429 Too Many Requests|error code: 1015",
        "Cloudflare opens no more quick tunnels for this network at the moment; a tunnel of an account has no such limit",
        False,
    ),
)
"""By words in the log: the explanation, and whether the error lasts until the user fixes it."""

OFFLINE = re.compile(r"dial|lookup|no such host|unreachable|refused|timeout|deadline|edge discovery", re.IGNORECASE)

_LINE = re.compile(r"\S+ (DBG|INF|WRN|ERR|FTL) (.*)")
_CAUSE = re.compile(r'\berror=(?:"((?:[^"\\]|\\.)*)"|(\S+))')
_URL = re.compile(r"\|\s+(https?://\S+)\s+\|")
_METRICS = re.compile(r"Starting metrics server on (\S+)/metrics")


class Cloudflared(LoggingAgent):
    """A running cloudflared."""

    name = "cloudflared"

    def __init__(self, target: str, token: str | None, domain: str | None, program: str | None, patience: float) -> None:
        """Raises TunnelError, also if there is no such program."""
        self._quick = not token
        self._url = "" if not domain else domain if "://" in domain else f"https://{domain}"
        self._api = ""
        self._connected = False
        path = shutil.which(program or "cloudflared")
        if path is None:
            where = f"there is no program at {program}" if program else "it is not on the PATH"
            raise TunnelError(
                f"--tunnel cloudflared needs the program cloudflared, and {where}: get it from {WHERE}; "
                "LOCALLAB_CLOUDFLARED_PATH may name it",
                lasting=True,
            )
        origin = ["--url", target, *(["--no-tls-verify"] if target.startswith("https:") else [])]
        command = [path, "tunnel", "--config", CONFIG, "--no-autoupdate", "--metrics", "127.0.0.1:0", "--grace-period", "1s"]
        command += ["run", *origin] if token else origin
        environ = environment(
            "LOCALLAB_CLOUDFLARED_TOKEN", *(name for name in os.environ if name.startswith("TUNNEL_") and name not in KEPT)
        )
        if token:
            environ["TUNNEL_TOKEN"] = token
        # A configuration of its own: the user's would turn a quick tunnel into another one.
        super().__init__(command, {CONFIG: "no-autoupdate: true\n"}, environ, patience, token or "")

    def open(self) -> str:
        self._wait(lambda: self._url and self._api and self._connected)
        self._troubled = False
        return self._url.rstrip("/")

    def metrics(self) -> Mapping[str, int]:
        self._check()
        if not self._is_connected():
            self._troubled = True
        found = re.search(r"^cloudflared_tunnel_total_requests (\S+)$", self._get("/metrics"), re.MULTILINE)
        return {"requests": int(float(found[1])) if found else 0}

    def _is_connected(self) -> bool:
        try:
            self._get("/ready")
        except urllib.error.HTTPError as error:
            error.close()
            return False
        return True

    def _get(self, path: str) -> str:
        try:
            with urllib.request.urlopen(self._api + path, timeout=self._patience) as response:
                text: str = response.read().decode(errors="replace")
                return text
        except urllib.error.HTTPError:
            raise
        except OSError as error:
            self._check()
            raise self._explained(self._problem or str(error)) from None

    def _explained(self, reason: str) -> TunnelError:
        reason = redacted(reason, self._secret).strip()
        if known := _known(reason):
            return TunnelError(*known)
        cause = _CAUSE.search(reason)
        reason = (cause[1] or cause[2]) if cause else reason
        if OFFLINE.search(reason):
            hint = "; where UDP is blocked, set TUNNEL_TRANSPORT_PROTOCOL=http2" if re.search(r"\bquic\b", reason) else ""
            return TunnelError(f"Cloudflare's servers cannot be reached: {reason}{hint}")
        return TunnelError(f"cloudflared failed: {reason}")

    def _note(self, line: str) -> None:
        found = _LINE.match(line)
        if found is None:
            self._problem = self._problem or line.strip()  # why it ends, or why the system could not run it
            return
        level, message = found.groups()
        if level in ("ERR", "FTL"):
            self._troubled = True
            if not _known(self._problem):  # what follows that only says that the agent ends
                self._problem = message
        elif self._quick and (url := _URL.search(message)):
            self._url = url[1]
        elif api := _METRICS.search(message):
            self._api = f"http://{api[1]}"
        elif message.startswith("Registered tunnel connection"):
            self._connected, self._problem = True, ""


def _known(message: str) -> tuple[str, bool] | None:
    return next((known for words, *known in KNOWN if re.search(words, message)), None)  # type: ignore[return-value]
