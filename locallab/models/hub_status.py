"""The status of the Hub, or of the mirror named by HF_ENDPOINT: its reachability, and the validity of a token."""

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
"""Seconds to wait for a response."""


def endpoint() -> str:
    """Return the URL of the Hub."""
    return (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")


def offline() -> bool:
    """Return whether the user forbids requests to the Hub."""
    return any(
        os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    )


def hub_problem(timeout: float = TIMEOUT) -> str | None:
    """Return why the Hub cannot be used now, None if it can. Sends no request when the user works offline."""
    if offline():
        return "HF_HUB_OFFLINE is set"
    problems: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def probe() -> None:
        problem = None
        try:
            _request("HEAD", "/", timeout)
        except urllib.error.HTTPError as error:
            error.close()
            problem = f"it answers with HTTP {error.code}" if error.code >= 500 else None
        except (OSError, ValueError, http.client.HTTPException) as error:
            problem = _readable(error)
        problems.put(problem)

    threading.Thread(target=probe, daemon=True).start()
    try:
        return problems.get(timeout=2 * timeout)  # a name lookup may take much longer than the timeout
    except queue.Empty:
        return "no answer"


def hub_reachable(timeout: float = TIMEOUT) -> bool:
    """Return whether the Hub answers."""
    return hub_problem(timeout) is None


def token_owner(token: str, timeout: float = TIMEOUT) -> str | None:
    """Return the name of the account that `token` belongs to, None if the Hub rejects it. Raises OSError if the Hub gives no
    usable answer."""
    try:
        answer = _request("GET", "/api/whoami-v2", timeout, token)
        name = json.loads(answer)["name"]
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in (401, 403):
            return None
        raise OSError(f"HTTP {error.code}") from None
    except (ValueError, KeyError, TypeError, http.client.HTTPException) as error:
        raise OSError(f"an unreadable answer: {_readable(error)}") from None
    return str(name)


def _request(method: str, path: str, timeout: float, token: str | None = None) -> bytes:
    url = endpoint() + path
    if not url.lower().startswith(("http://", "https://")):
        raise ValueError(f"HF_ENDPOINT must be an http:// or https:// address, it is {endpoint()!r}")
    request = urllib.request.Request(url, method=method, headers={"User-Agent": "locallab"})
    if token:
        request.add_unredirected_header("Authorization", f"Bearer {token}")  # not sent to hosts that the Hub redirects to
    with urllib.request.urlopen(request, timeout=timeout) as response:
        data: bytes = response.read(1 << 20)
        return data


def _readable(error: Exception) -> str:
    reason = getattr(error, "reason", error)
    return str(getattr(reason, "strerror", None) or reason) or type(error).__name__
