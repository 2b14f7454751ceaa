"""ngrok's errors explained in one line that says what to do. Pure."""

from __future__ import annotations

import re

from locallab.errors import TunnelError
from locallab.tunnel.agent import redacted

GET_TOKEN = "dashboard.ngrok.com/get-started/your-authtoken shows the right one"
KNOWN = {
    "105": ("ngrok does not know this token: check LOCALLAB_NGROK_TOKEN or NGROK_AUTHTOKEN; " + GET_TOKEN, True),
    "106": ("ngrok has suspended the account of this token", True),
    "107": ("ngrok no longer accepts this token: it was reset or belongs to nobody; " + GET_TOKEN, True),
    "4018": ("ngrok requires a token: set LOCALLAB_NGROK_TOKEN or NGROK_AUTHTOKEN; " + GET_TOKEN, True),
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
"""By ngrok's error codes: the explanation, and whether the error lasts until the user fixes it."""

OFFLINE = re.compile(
    r"dial|lookup|no such host|unreachable|connection refused|i/o timeout|reconnect|TLS handshake", re.IGNORECASE
)


def no_token() -> TunnelError:
    return TunnelError(f"a tunnel needs the token of an ngrok account: set LOCALLAB_NGROK_TOKEN; {GET_TOKEN}", lasting=True)


def explained(message: str, token: str = "", domain: str | None = None) -> TunnelError:
    """Return the error to raise for a message of ngrok, without the token."""
    message = redacted(message, token)
    code = re.search(r"ERR_NGROK_(\d+)", message)
    if code and code[1] in KNOWN:
        explanation, lasting = KNOWN[code[1]]
        return TunnelError(f"{explanation} ({code[0]})", lasting)
    # The first line; advice and links follow.
    lines = (line.strip(" \t.") for line in message.replace("\\r", "\n").replace("\\n", "\n").splitlines())
    reason = next(filter(None, lines), "it gave no reason")
    if code and domain and "domain" in reason.lower():
        return TunnelError(f"tunnel_domain: ngrok refuses {domain!r}: {reason} ({code[0]})", lasting=True)
    if code:
        return TunnelError(f"ngrok refuses the tunnel: {reason} ({code[0]})", lasting=True)
    if OFFLINE.search(reason):
        return TunnelError(f"ngrok's servers cannot be reached: {reason}")
    return TunnelError(f"the ngrok agent failed: {reason}")
