"""Whether the Hub, or the mirror that HF_ENDPOINT names, can be reached, and whether it takes the user's token."""

from __future__ import annotations

import http.client
import json
import os
import queue
import threading
import urllib.error
import urllib.request

HUB = "https://huggingface.co"
TIMEOUT = 3.0
"""Seconds to wait for an answer."""


def endpoint() -> str:
    """Where the Hub is."""
    return (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")


def offline() -> bool:
    """Whether the user forbids to ask the Hub for anything."""
    return any(
        os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    )


def hub_problem(timeout: float = TIMEOUT) -> str | None:
    """Why the Hub cannot be used now; None if it answers. Asks nobody when the user works offline."""
    if offline():
        return "HF_HUB_OFFLINE is set"
    answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    threading.Thread(target=lambda: answers.put(_problem(timeout)), daemon=True).start()
    try:
        return answers.get(timeout=2 * timeout)  # a name may be looked up for much longer
    except queue.Empty:
        return "no answer"


def _problem(timeout: float) -> str | None:
    try:
        _ask("HEAD", "/", timeout)
    except urllib.error.HTTPError as error:
        error.close()
        return f"it answers with HTTP {error.code}" if error.code >= 500 else None
    except (OSError, ValueError, http.client.HTTPException) as error:
        return _readable(error)
    return None


def hub_reachable(timeout: float = TIMEOUT) -> bool:
    """Whether the Hub answers."""
    return hub_problem(timeout) is None


def token_owner(token: str, timeout: float = TIMEOUT) -> str | None:
    """The name of the account that `token` belongs to, None if the Hub does not know the token. Raises OSError when the Hub
    does not say."""
    try:
        answer = _ask("GET", "/api/whoami-v2", timeout, token)
        name = json.loads(answer)["name"]
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in (401, 403):
            return None
        raise OSError(f"HTTP {error.code}") from None
    except (ValueError, KeyError, TypeError, http.client.HTTPException) as error:
        raise OSError(f"an answer that cannot be read: {_readable(error)}") from None
    return str(name)


def _ask(method: str, path: str, timeout: float, token: str | None = None) -> bytes:
    url = endpoint() + path
    if not url.lower().startswith(("http://", "https://")):
        raise ValueError(f"HF_ENDPOINT must be an http:// or https:// address, it is {endpoint()!r}")
    request = urllib.request.Request(url, method=method, headers={"User-Agent": "locallab"})
    if token:
        request.add_unredirected_header("Authorization", f"Bearer {token}")  # for nobody whom the Hub names instead
    with urllib.request.urlopen(request, timeout=timeout) as response:
        data: bytes = response.read(1 << 20)
        return data


def _readable(error: Exception) -> str:
    reason = getattr(error, "reason", error)
    return str(getattr(reason, "strerror", None) or reason) or type(error).__name__
