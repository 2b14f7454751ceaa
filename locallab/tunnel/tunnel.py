"""The tunnel of one server: a thread that opens it, tests it, watches it, and reopens it when it is lost."""

from __future__ import annotations

import contextlib
import http.client
import logging
import os
import secrets
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from locallab.errors import ConfigError, TunnelError
from locallab.settings import Provider, ServerSettings
from locallab.tunnel.facts import State, TunnelFacts
from locallab.tunnel.ngrok_errors import no_token
from locallab.tunnel.process import PARTING
from locallab.tunnel.usage import Usage

if TYPE_CHECKING:
    from locallab.tunnel.agent import Agent

PATH = "/health/live"
AGAIN = 0.5
"""Seconds between two test requests."""
STEADY = 60.0
"""Seconds after which a tunnel counts as stable, so that its loss is a first failure."""
SAVE_EVERY = 30.0
NEARLY = 0.8
"""Used fraction of the free plan that causes a warning."""

log = logging.getLogger(__name__)


def pause(failures: int) -> float:
    """Return the seconds to wait after this many failures in a row."""
    return float(min(60, 2 ** min(failures, 6)))


class Tunnel:
    """A public address for the server at `target`. `announce` is called with each new address, after a request through it has
    succeeded; `complain` with the reason why there is none. Both run in the tunnel's own thread, between `start` and `close`.

    `program` is the provider's agent if it is not where it usually is. Seconds: `patience` for the agent to start, `trial` for
    test requests to succeed, `every` between two checks.
    """

    def __init__(
        self,
        target: str,
        token: str | None,
        *,
        provider: Provider = "ngrok",
        domain: str | None = None,
        program: str | None = None,
        announce: Callable[[str], None],
        complain: Callable[[TunnelError], None],
        usage: Usage | None = None,
        patience: float = 15.0,
        trial: float = 10.0,
        every: float = 2.0,
        pause: Callable[[int], float] = pause,
    ) -> None:
        self._target = target
        self._token = token
        self._provider: Provider = provider
        self._domain = domain
        self._program = program
        self._announce = announce
        self._complain = complain
        self.usage = usage or Usage(provider=provider)
        self._patience = patience
        self._trial = trial
        self._every = every
        self._pause = pause
        self._thread = threading.Thread(target=self._run, name="tunnel", daemon=True)
        self._stop = threading.Event()
        self._settled = threading.Event()  # open, or the first attempt has failed
        self._agent: Agent | None = None
        self._url: str | None = None
        self._last: str | None = None  # the address announced last
        self._host = b""
        self._state: State = "opening"
        self._error: TunnelError | None = None
        self._opened = 0
        self._connections: int | None = None
        self._requests = 0
        self._complained = ""
        self._warned = False
        self._save_at = time.monotonic() + SAVE_EVERY

    @property
    def url(self) -> str | None:
        """The public address while the tunnel is open."""
        return self._url

    def start(self) -> None:
        """Start opening the tunnel; the server must be listening already."""
        self._thread.start()

    def wait(self) -> str:
        """Return the public address once it is open. Raises TunnelError if the first attempt fails or the tunnel is closed."""
        self._settled.wait()
        if self._url is not None:
            return self._url
        raise self._error or TunnelError("the tunnel is closed")

    def carries(self, host: bytes) -> bool:
        """Return whether a request with this Host header came through the tunnel."""
        return bool(self._host) and host.lower() == self._host

    def facts(self) -> TunnelFacts:
        """Return the tunnel's status for /system/info; callable from any thread."""
        error = str(self._error) if self._error and self._state != "open" else None
        month, counted = self.usage.facts(), (self._connections, self._requests)
        return TunnelFacts(self._url, self._state, error, self._opened, *counted, month, self._provider)

    def close(self) -> None:
        """End the agent and the thread, and wait for both. May be called again, and without `start`."""
        self._stop.set()
        if self._state == "open" and self._thread.is_alive():
            self._thread.join(PARTING + 1)
        while self._thread.is_alive():
            agent = self._agent
            if agent is not None:
                agent.kill()  # ends any wait of the thread
            self._thread.join(0.1)

    def _run(self) -> None:
        failures = 0
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                self._hold()
                break
            except TunnelError as failure:
                error = failure
            except Exception as failure:  # a bug: callers of `wait` must learn of it too
                log.exception("the tunnel failed")
                error = TunnelError(f"the tunnel failed: {failure}", lasting=True)
            if self._stop.is_set():
                break
            failures = failures + 1 if time.monotonic() - began < STEADY else 1
            lost = self._state == "open"
            self._url, self._error = None, error
            self._state = "lost" if lost or self._state == "lost" else "opening"
            self._settled.set()
            if str(error) != self._complained:  # once, not at every attempt
                self._complained = str(error)
                self._complain(TunnelError(f"the tunnel is lost: {error}") if lost else error)
            if error.lasting:
                break
            self._stop.wait(self._pause(failures))
        self._state = "closed" if self._stop.is_set() else "failed"
        self._url = None
        self._settled.set()
        self._save()

    def _hold(self) -> None:
        """Open the tunnel and watch it until stopped. Raises TunnelError if it cannot be opened or is lost."""
        with contextlib.closing(self._start_agent()) as self._agent:
            url = self._agent.open()
            self._host = urlsplit(url).netloc.lower().encode()
            self._test(url)
            again = url == self._last
            self._url = self._last = url
            self._state, self._complained = "open", ""
            self._opened += 1
            self._settled.set()
            if again:
                log.info("the tunnel is open again at the same address")
            else:
                self._announce(url)
            while not self._stop.wait(self._every):
                counts = self._agent.metrics()
                self._connections, self._requests = counts.get("connections"), counts["requests"]
                if self._agent.troubled():
                    self._test(url)
                if time.monotonic() >= self._save_at:
                    self._save()
                self._warn_of_limits()

    def _start_agent(self) -> Agent:
        """Start the provider's agent, whose module is slow to import. Raises TunnelError."""
        if self._provider == "cloudflared":
            from locallab.tunnel.cloudflared import Cloudflared

            return Cloudflared(self._target, self._token, self._domain, self._program, self._patience)
        from locallab.tunnel.ngrok import Ngrok

        if not self._token:
            raise no_token()
        return Ngrok(self._target, self._token, self._domain, self._patience)

    def _warn_of_limits(self) -> None:
        used = self.usage.facts().free_plan_used
        if not self._warned and used is not None and used >= NEARLY:
            self._warned = True
            log.warning("the tunnel has used %.0f%% of ngrok's free plan for this month", 100 * used)

    def _test(self, url: str) -> None:
        """Send requests through the tunnel until one succeeds. Raises TunnelError."""
        deadline = time.monotonic() + self._trial
        while True:
            try:
                return reach(url, max(AGAIN, deadline - time.monotonic()))
            except TunnelError as error:
                if error.lasting or time.monotonic() > deadline or self._stop.wait(AGAIN):
                    raise

    def _save(self) -> None:
        self._save_at = time.monotonic() + SAVE_EVERY
        try:
            self.usage.save()
        except OSError as error:
            log.warning("the tunnel's usage cannot be saved: %s", error)


def configured_tunnel(
    settings: ServerSettings, target: str, announce: Callable[[str], None], complain: Callable[[TunnelError], None]
) -> Tunnel | None:
    """Return the tunnel that the settings call for, None if they call for none. Raises ConfigError if keys are disabled."""
    if not settings.tunnel:
        return None
    if not settings.auth:
        raise ConfigError("tunnel: a public address requires a key; remove --no-auth")
    if settings.uds:
        raise ConfigError("tunnel: leads to a port, which a server with --uds does not have; remove one of the two")
    return (
        _cloudflared(settings, target, announce, complain)
        if settings.tunnel == "cloudflared"
        else Tunnel(
            target,
            settings.ngrok_token or os.environ.get("NGROK_AUTHTOKEN"),
            domain=settings.tunnel_domain,
            announce=announce,
            complain=complain,
        )
    )


def _cloudflared(
    settings: ServerSettings, target: str, announce: Callable[[str], None], complain: Callable[[TunnelError], None]
) -> Tunnel:
    token, domain = settings.cloudflared_token, settings.tunnel_domain
    if token and not domain:
        raise ConfigError("tunnel_domain: must be the public host name of the tunnel of LOCALLAB_CLOUDFLARED_TOKEN")
    if domain and not token:
        raise ConfigError("tunnel_domain: Cloudflare needs LOCALLAB_CLOUDFLARED_TOKEN for it; a quick tunnel has a random name")
    return Tunnel(
        target,
        token,
        provider="cloudflared",
        domain=domain,
        program=settings.cloudflared_path,
        announce=announce,
        complain=complain,
        patience=30.0,
        trial=60.0,  # the name of a quick tunnel is not known everywhere at once
    )


def reach(url: str, timeout: float) -> None:
    """Send a request through the tunnel to this server and check that it answered. Raises TunnelError."""
    nonce = secrets.token_hex(16)
    headers = {"x-request-id": nonce, "ngrok-skip-browser-warning": "1", "user-agent": "locallab", "connection": "close"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url + PATH, headers=headers), timeout=timeout) as response:
            ours = response.headers["x-request-id"] == nonce
    except urllib.error.HTTPError as error:
        error.close()
        ours = error.headers["x-request-id"] == nonce
        other = error.headers.get("ngrok-error-code") or error.headers.get("server", "another server")
        by = "this server: --allowed-hosts must allow that name" if ours else other
        raise TunnelError(f"a request through {url} was answered {error.code} by {by}", lasting=ours) from None
    except (OSError, http.client.HTTPException) as error:
        raise TunnelError(f"a request through {url} did not come back: {getattr(error, 'reason', error)}") from None
    if not ours:
        raise TunnelError(f"a request through {url} was answered by another server")
