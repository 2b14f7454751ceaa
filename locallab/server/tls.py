"""TLS: the certificate, read again when it changes, and the handshake of a connection.

A connection counts from the moment it is accepted, by the limits of `connections`, so that clients which connect and never
shake hands keep nobody out and hold nothing up. uvicorn's own way counts a connection once it has shaken hands.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from typing import Any

from locallab.errors import ConfigError
from locallab.server.connections import ConnectionLimits, group
from locallab.server.http_protocol import HttpProtocol
from locallab.settings import ServerSettings

TIMEOUTS: Mapping[str, Any] = {"ssl_handshake_timeout": 10.0, "ssl_shutdown_timeout": 1.0}
"""Seconds for a client to shake hands, and to answer the end of a connection before it is cut."""

MISMATCHES = ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED")
"""OpenSSL's reasons to refuse a key that is another certificate's."""

PAUSE = 0.5
"""Seconds after which accepting is tried again when it fails."""

log = logging.getLogger(__name__)


class Certificates:
    """The certificate in these files, which is for hosts of these `names`. `context` is for new connections; those that have
    begun keep theirs."""

    def __init__(self, cert: str, key: str) -> None:
        """Raises ConfigError for files that cannot be used."""
        self._files = (cert, key)
        self._seen = self._loaded = self._state()
        self._load()

    def refresh(self) -> None:
        """Load the files again once they have changed, and have not since the last call: they are two, replaced one after the
        other. Log a warning, and keep what there is, if they cannot be used."""
        before, self._seen = self._seen, self._state()
        if self._seen != before or self._seen == self._loaded:
            return
        self._loaded = self._seen
        try:
            self._load()
        except ConfigError as error:
            log.warning("the changed certificate is not used, the old one remains: %s", error)
        else:
            log.info("new connections get the changed certificate")

    def name(self, address: str) -> str:
        """Return what clients should call this server, which they reach at `address`: a name that the certificate is for."""
        exact = [name for name in self.names if "*" not in name]
        return next((name for name in ("localhost", address) if name in exact), next(iter(exact), address))

    def _load(self) -> None:
        self.context, self.names = (context := load(*self._files)), names(context, self._files[0])

    def _state(self) -> list[tuple[int, ...]]:
        found: list[tuple[int, ...]] = []
        for path in self._files:
            try:
                status = os.stat(path)
            except OSError:
                found.append(())
            else:
                found.append((status.st_ino, status.st_size, status.st_mtime_ns))
        return found


def configured(settings: ServerSettings) -> Certificates | None:
    """Return the certificate that the settings name, None if they name none. Raises ConfigError."""
    if not settings.tls_cert and not settings.tls_key:
        return None
    if not settings.tls_cert or not settings.tls_key:
        given, missing = ("tls_cert", "tls_key") if settings.tls_cert else ("tls_key", "tls_cert")
        raise ConfigError(f"{given}: needs {missing} too: a server has a certificate and its private key")
    if settings.uds:
        raise ConfigError("tls_cert: a Unix socket has no TLS; leave it to the proxy in front, or remove uds")
    return Certificates(settings.tls_cert, settings.tls_key)


def load(cert: str, key: str) -> ssl.SSLContext:
    """Return a server's context with the certificate. Raises ConfigError that names the file and what is wrong with it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])

    def refuse_passphrase() -> str:  # without it, OpenSSL asks at the terminal
        raise ConfigError(f"tls_key: {key} has a passphrase, for which nobody can be asked; remove it with openssl pkey -in")

    for name, path in (("tls_cert", cert), ("tls_key", key)):
        try:
            with open(path, "rb") as file:
                file.read(1)
        except OSError as error:
            raise ConfigError(f"{name}: {path} cannot be read: {error.strerror}") from None
    try:
        context.load_cert_chain(cert, key, refuse_passphrase)
    except ssl.SSLError as error:
        if error.reason in MISMATCHES:
            raise ConfigError(f"tls_key: {key} is not the key of the certificate in {cert}") from None
        if not _is_certificate(cert):
            raise ConfigError(f"tls_cert: {cert} holds no certificate in PEM form, or a damaged one") from None
        raise ConfigError(f"tls_key: {key} holds no private key in PEM form, or one that cannot be used: {error}") from None
    return context


def names(context: ssl.SSLContext, cert: str) -> list[str]:
    """Return the host names and addresses in the certificate of a server's context; log a warning if clients will refuse it,
    as when it has expired.

    The standard library parses nothing but the certificate of a peer, so this shakes hands in memory.
    """
    client = trusting(cert)
    one, other = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(one, other), context.wrap_bio(other, one, server_side=True)]
    try:
        for end in ends * 2:
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
        found: Any = ends[0].getpeercert() or {}
    except (ssl.SSLError, ValueError) as error:
        log.warning("tls_cert: clients will refuse %s: %s", cert, getattr(error, "verify_message", error))
        return []
    return [value for kind, value in found.get("subjectAltName", ()) if kind in ("DNS", "IP Address")]


def trusting(cert: str) -> ssl.SSLContext:
    """Return the context of a client that trusts this certificate, whoever has signed it, and whatever names it is for."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.load_verify_locations(cert)
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return client


def _is_certificate(path: str) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except ssl.SSLError:
        return False
    return True


class TlsListener:
    """Accepts connections at `sock`, which it closes, and has each shake hands. `make` makes the protocol of one that has, of
    which `arrived` is called then; `connections` has those that have not."""

    def __init__(
        self,
        sock: socket.socket,
        certificates: Certificates,
        limits: ConnectionLimits,
        make: Callable[..., HttpProtocol],
        connections: set[Any],
    ) -> None:
        self._sock = sock
        self._certificates = certificates
        self._limits = limits
        self._make = make
        self._connections = connections
        self._sock.setblocking(False)
        self._accepting = asyncio.get_running_loop().create_task(self._accept())

    def close(self) -> None:
        """Accept no more connections."""
        self._accepting.cancel()
        self._sock.close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, address = await loop.sock_accept(self._sock)
            except OSError as error:  # no file descriptor is left, or the client has gone
                log.warning("a connection cannot be accepted: %s", error)
                await asyncio.sleep(PAUSE)
                continue
            new = Handshake(sock, address[:2], self._connections)
            if self._limits.admit(new, self._connections):
                new.begin(self._make, self._certificates.context)
            else:
                new.abort()


class Handshake:
    """A connection until its client has shaken hands. It counts as an idle one."""

    idle = True

    def __init__(self, sock: socket.socket, client: tuple[str, int], connections: set[Any]) -> None:
        self.client: tuple[str, int] | None = client
        self.peer = group(client[0])
        self.since = time.monotonic()
        self.transport: Any = self
        self._sock = sock
        self._connections = connections
        self._shaking: asyncio.Task[None] | None = None
        connections.add(self)

    def begin(self, make: Callable[..., HttpProtocol], context: ssl.SSLContext) -> None:
        self._shaking = asyncio.get_running_loop().create_task(self._shake_hands(make, context))

    def check(self, now: float) -> None:
        """Do nothing: the handshake has a time limit."""

    def abort(self) -> None:
        self._connections.discard(self)
        if self._shaking is None:
            self._sock.close()
        else:
            self._shaking.cancel()

    shutdown = abort

    async def _shake_hands(self, make: Callable[..., HttpProtocol], context: ssl.SSLContext) -> None:
        loop = asyncio.get_running_loop()
        make = functools.partial(make, arrived=lambda: self._connections.discard(self))  # as what it now is, it counts once
        try:
            await loop.connect_accepted_socket(make, self._sock, ssl=context, **TIMEOUTS)
        except OSError as error:  # also ssl.SSLError: plain HTTP, an old TLS, a certificate that the client does not trust
            reason = getattr(error, "reason", None) or str(error) or "the client has left"
            log.info("%s: no TLS connection: %s", self.peer, reason)
        finally:
            self._connections.discard(self)
            self._sock.close()
