"""API keys: the file that stores them, and the keys that a running server accepts.

The file holds the SHA-256 of each key, never the key. A slow hash, as for passwords, would add nothing: a key has 256 random
bits, which cannot be guessed however fast the hash is, and the key of every request has to be hashed.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import logging
import os
import secrets
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from locallab.errors import ConfigError
from locallab.settings import ServerSettings, home

Tier = Literal["free", "pro"]

PREFIX = "ll-"
"""Prefix of every key, by which people and secret scanners recognize one."""

LONGEST_NAME = 64
FIRST_NAME = "first key"

log = logging.getLogger(__name__)


class Key(msgspec.Struct, frozen=True):
    """A stored key: its hash, not the key itself. `created` is in seconds since the epoch."""

    name: str
    tier: Tier
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    created: int

    @property
    def id(self) -> str:
        return self.sha256[:8]


class _File(msgspec.Struct):
    keys: tuple[Key, ...]


Version = tuple[int, int, int] | None
"""Differs after each change of the file; None if there is no file."""


class KeyStore:
    """The file of keys on this machine, by default keys.json in `settings.home()`; the first key creates it."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = home() / "keys.json" if path is None else path

    def version(self) -> Version:
        """Return the version of the file, for the price of one stat."""
        try:
            stat = self.path.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_ino, stat.st_size

    def read(self) -> tuple[Key, ...]:
        """Return all keys, oldest first. Raises ConfigError for a file that cannot be used."""
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=_File).keys
        except FileNotFoundError:
            return ()
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise ConfigError(f"{self.path}: the file of API keys cannot be used: {reason}; repair or remove it") from None

    def create(self, name: str, tier: Tier) -> tuple[Key, str]:
        """Add a key, and return it and its secret, which is stored nowhere. Raises ConfigError for an unusable name."""
        if not name.strip() or not name.isprintable() or len(name) > LONGEST_NAME:
            raise ConfigError(f"name: must be 1 to {LONGEST_NAME} printable characters, got {name!r}")
        secret = new_secret()
        key = Key(name, tier, _digest(secret), int(time.time()))
        with self._locked():
            keys = self.read()
            if any(each.name == name for each in keys):
                raise ConfigError(f"name: there is a key {name!r} already; choose another name, or revoke that one first")
            self._write((*keys, key))
        return key, secret

    def revoke(self, name: str) -> Key:
        """Remove and return the key with this name, or else this id. Raises ConfigError when there is none."""
        with self._locked():
            keys = self.read()
            matches = [key for key in keys if key.name == name] or [key for key in keys if key.id == name]
            if not matches:
                known = ", ".join(repr(key.name) for key in keys) or "none"
                raise ConfigError(f"there is no key {name!r}; known: {known}")
            self._write([key for key in keys if key is not matches[0]])
        return matches[0]

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Lock the file against other writers, processes and threads; readers need no lock."""
        from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]  # as the model store's; imports slowly

        self.path.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(self.path.with_suffix(".lock")):
            yield

    def _write(self, keys: Iterable[Key]) -> None:
        """Replace the file atomically: a reader sees the old one or the new one. Only its owner may read either."""
        handle, name = tempfile.mkstemp(dir=self.path.parent, prefix="keys-")  # has the mode 0600
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(msgspec.json.format(msgspec.json.encode(_File(tuple(keys)))))
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, self.path)
        except BaseException:
            os.unlink(name)
            raise


class Keyring:
    """The keys that a running server accepts, and whether it requires one. For one thread.

    The store's file is read again whenever it has changed. A damaged file raises ConfigError at construction; later the keys
    stay as they were, and the error is logged. `public` means that other machines can reach the server.
    """

    def __init__(self, settings: ServerSettings, store: KeyStore, public: bool = False) -> None:
        self.public = public
        self._auth = settings.auth
        self._single = _single(settings.api_key)
        self._store = store
        self._version = store.version()
        self._keys = store.read()
        self._protected = False

    @property
    def required(self) -> bool:
        """True if a request needs a key. Once true it stays so: revoking the last key must not open the server."""
        self._refresh()
        self._protected = self._protected or self.public or bool(self._single or self._keys)
        return self._auth and self._protected

    @property
    def several(self) -> bool:
        """True if more than one key is valid."""
        self._refresh()
        return len(self._single) + len(self._keys) > 1

    def find(self, presented: Sequence[str]) -> Key | None:
        """Return the key of the first valid secret in `presented`, comparing in constant time."""
        self._refresh()
        for secret in presented:
            digest, match = _digest(secret), None
            for key in (*self._single, *self._keys):
                if hmac.compare_digest(key.sha256, digest):
                    match = key
            if match is not None:
                return match
        return None

    def has(self, key: Key) -> bool:
        """Return True if a key from `find` is still valid."""
        self._refresh()
        return key in self._single or key in self._keys

    def _refresh(self) -> None:
        version = self._store.version()
        if version == self._version:
            return
        self._version = version
        try:
            self._keys = self._store.read()
        except ConfigError as error:
            log.error("%s; the keys stay as they were", error)
        else:
            log.info("read the API keys again: %d", len(self._keys))


def new_secret() -> str:
    """Return a new random key."""
    return PREFIX + secrets.token_urlsafe(32)


def ensure_key(settings: ServerSettings, store: KeyStore, public: bool) -> str | None:
    """Create the first key of a server that other machines can reach, and return its secret, which can be shown only now.

    Returns None if there is a key, if other machines cannot reach the server, and with --no-auth, after a warning in the log.
    """
    if not public:
        return None
    if not settings.auth:
        log.warning("--no-auth: anyone who can reach this server may use it without a key")
        return None
    if settings.api_key is not None or store.read():
        return None
    return store.create(FIRST_NAME, "pro")[1]


def _single(secret: str | None) -> tuple[Key, ...]:
    """Return the key of --api-key, if any. Raises ConfigError for an empty one: --api-key "$KEY" never means an open server."""
    if secret is None:
        return ()
    if not secret.isascii() or not secret.isprintable() or " " in secret or not secret:
        raise ConfigError("api_key: must be one or more ASCII characters without blanks")
    return (Key("--api-key", "pro", _digest(secret), int(time.time())),)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
