"""Why ngrok failed, in one line that says what to do. Pure."""

from __future__ import annotations

import re

from locallab.errors import TunnelError

GET_TOKEN = "dashboard.ngrok.com/get-started/your-authtoken shows the right one"
KNOWN = {
    "105": ("ngrok does not know this token: check LOCALLAB_NGROK_TOKEN or NGROK_AUTHTOKEN; " + GET_TOKEN, True),
    "106": ("ngrok has suspended the account of this token", True),
    "107": ("ngrok no longer takes this token: it was reset or belongs to nobody; " + GET_TOKEN, True),
    "4018": ("ngrok asks for a token: set LOCALLAB_NGROK_TOKEN or NGROK_AUTHTOKEN; " + GET_TOKEN, True),
    "108": (
        "another agent of this ngrok account is running, and its plan allows no more: stop that one; "
        "dashboard.ngrok.com/agents lists them",
        False,
    ),
    "120": ("the ngrok agent on this machine is too old: delete it, and a new one is downloaded", True),
    "121": ("the ngrok agent on this machine is too old: delete it, and a new one is downloaded", True),
    "334": ("another agent serves this ngrok domain already: stop that one, or choose another --tunnel-domain", False),
    "725": ("this month's traffic of the ngrok account is used up", False),
    "727": ("this month's requests of the ngrok account are used up", False),
}
"""By ngrok's error codes: what to say, and whether it lasts until somebody sets it right."""

OFFLINE = re.compile(
    r"dial|lookup|no such host|unreachable|connection refused|i/o timeout|reconnect|TLS handshake", re.IGNORECASE
)


def no_token() -> TunnelError:
    return TunnelError(f"a tunnel needs the token of an ngrok account: set LOCALLAB_NGROK_TOKEN; {GET_TOKEN}", lasting=True)


def explained(said: str, token: str = "", domain: str | None = None) -> TunnelError:
    """The error to raise for what ngrok said; the token is never part of it."""
    said = redacted(said, token)
    code = re.search(r"ERR_NGROK_(\d+)", said)
    if code and code[1] in KNOWN:
        reason, lasting = KNOWN[code[1]]
        return TunnelError(f"{reason} ({code[0]})", lasting)
    said = _first_line(said)
    if code and domain and "domain" in said.lower():
        return TunnelError(f"tunnel_domain: ngrok refuses {domain!r}: {said} ({code[0]})", lasting=True)
    if code:
        return TunnelError(f"ngrok refuses the tunnel: {said} ({code[0]})", lasting=True)
    if OFFLINE.search(said):
        return TunnelError(f"ngrok's servers cannot be reached: {said}")
    return TunnelError(f"the ngrok agent failed: {said}")


def redacted(text: str, token: str) -> str:
    """The text without the token: ngrok repeats it when it refuses it."""
    return text.replace(token, "***") if token else text


def _first_line(said: str) -> str:
    """What comes first, without the lines of advice and links that follow."""
    lines = (line.strip(" \t.") for line in said.replace("\\r", "\n").replace("\\n", "\n").splitlines())
    return next(filter(None, lines), "it gave no reason")
