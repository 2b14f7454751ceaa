"""The socket that a server listens on: of the network or, by a path, of this machine."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import logging
import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from locallab.errors import ConfigError
from locallab.settings import ServerSettings

LONGEST_PATH = 107
"""Bytes of a Unix socket's path: sockaddr_un has room for 108, one of them the end's."""

log = logging.getLogger(__name__)


def refusal(error: OSError, host: str, port: int) -> ConfigError:
    reasons = {
        errno.EADDRINUSE: f"port: {port} on {host} is in use; choose another with --port, or 0 for any free one",
        errno.EACCES: f"port: {port} requires elevated privileges; choose one above 1023",
        errno.EADDRNOTAVAIL: f"host: {host!r} is not an address of this machine",
    }
    return ConfigError(reasons.get(error.errno or 0, f"cannot listen on {host} port {port}: {error.strerror}"))


@contextlib.contextmanager
def opened(settings: ServerSettings, passed: socket.socket | None = None) -> Iterator[socket.socket]:
    """Yield the socket that the settings call for, or the one `passed` on by another process. It is closed at the end, and the
    path of a Unix socket is removed. Raises ConfigError as `bind` and `bind_path` do."""
    sock = passed
    if sock is None:
        sock = bind_path(settings.uds, int(settings.uds_mode, 8)) if settings.uds else bind(settings.host, settings.port)
    path = sock.getsockname() if sock.family == socket.AF_UNIX else None
    with contextlib.closing(sock):
        own = _identity(path)
        try:
            yield sock
        finally:
            if path and own == _identity(path):  # else another server has taken its place
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)


def _identity(path: str | None) -> tuple[int, int] | None:
    """Return what tells the file at the path from others that had it; None where there is none."""
    try:
        status = os.stat(path) if path else None
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if status else None


def bind_path(path: str, mode: int) -> socket.socket:
    """Bind a Unix socket without listening yet, in place of one that no server has any more.

    Raises ConfigError for a path that is too long, in use, no socket's, or whose folder is missing.
    """
    where = os.path.abspath(path)
    if (size := len(os.fsencode(where))) > LONGEST_PATH:
        raise ConfigError(
            f"uds: {where} has {size} bytes; the path of a socket has at most {LONGEST_PATH}: choose a shorter one"
        )
    if os.path.lexists(where):
        if not stat.S_ISSOCK(os.lstat(where).st_mode):
            raise ConfigError(f"uds: {where} exists and is no socket; choose another path, or remove it yourself")
        if _has_server(where):
            raise ConfigError(f"uds: {where} is in use by another server; stop that one, or choose another path")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(where)
        sock.bind(where)
        os.chmod(where, mode)  # nobody can connect before, as it does not listen
    except OSError as error:
        sock.close()
        folder = os.path.dirname(where)
        reason = error.strerror if os.path.isdir(folder) else f"{folder} is no folder"
        raise ConfigError(f"uds: no socket can be made at {where}: {reason}") from None
    return sock


def _has_server(path: str) -> bool:
    """Return whether a process has the socket at `path`, even if it does not listen yet."""
    bound = Path("/proc/net/unix")
    if bound.exists() and any(line.endswith(f" {path}") for line in bound.read_text(errors="surrogateescape").splitlines()):
        return True
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(1)
        try:
            sock.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:  # a full backlog, or no permission to ask
            return True
    return True


def listen(sock: socket.socket, backlog: int) -> None:
    """Listen. Raises ConfigError if another process has taken the port: two may bind one, only one may listen."""
    try:
        sock.listen(backlog)
    except OSError as error:
        raise refusal(error, *sock.getsockname()[:2]) from None


def bind(host: str, port: int) -> socket.socket:
    """Bind a socket without listening yet: until the app is up, clients are refused instead of kept waiting.

    Raises ConfigError if the address is invalid or in use.
    """
    try:
        name = "127.0.0.1" if host == "localhost" else host  # known without /etc/hosts; ::1 comes with `loopback_twin`
        infos = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "not a host name"
        raise ConfigError(f"host: {host!r} is not an address of this machine: {reason}") from None
    family, kind, protocol, _, address = min(infos, key=lambda info: info[0] != socket.AF_INET)
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise refusal(error, name, port) from None
    return sock


def loopback_twin(sock: socket.socket) -> socket.socket | None:
    """Bind ::1 to the port of a socket on 127.0.0.1: many clients look for `localhost` there, and some nowhere else.

    Returns None where there is no IPv6, and logs a warning if another process has the port.
    """
    if sock.family != socket.AF_INET or not socket.has_ipv6:
        return None
    address, port = sock.getsockname()
    if address != "127.0.0.1":
        return None
    try:
        twin = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    except OSError:
        return None
    try:
        twin.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        twin.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        twin.bind(("::1", port))
        twin.listen()
    except OSError as error:
        twin.close()
        if error.errno == errno.EADDRINUSE:
            log.warning("port %d on ::1 is in use: clients that look for localhost there find another server", port)
        return None
    return twin


def is_public(sock: socket.socket) -> bool:
    """Return whether other machines can reach the socket."""
    if sock.family == socket.AF_UNIX:
        return False
    address: str = sock.getsockname()[0]
    return not ipaddress.ip_address(address.partition("%")[0]).is_loopback


def url(sock: socket.socket, tls: bool = False, named: Callable[[str], str] = str) -> str:
    """Return the URL of the socket for clients on this machine; of a Unix socket, unix: and its path. `named` gives the name to
    use for its address."""
    if sock.family == socket.AF_UNIX:
        return f"unix:{sock.getsockname()}"
    host, port = sock.getsockname()[:2]
    name = named({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host))
    return f"{'https' if tls else 'http'}://{f'[{name}]' if ':' in name else name}:{port}"
