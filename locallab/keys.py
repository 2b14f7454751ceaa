"""API keys: the file that stores them, and the keys that a running server accepts.

The file holds the SHA-256 of each key, never the key. A slow hash, as for passwords, would add nothing: a key has 256 random
bits, which cannot be guessed however fast the hash is, and the key of every request has to be hashed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import hmac
import logging
import math
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from locallab import private_files
from locallab.errors import ConfigError, SaveError
from locallab.settings import ServerSettings, home

Tier = Literal["free", "pro"]
Role = Literal["use", "admin"]

PREFIX = "ll-"
"""Prefix of every key, by which people and secret scanners recognize one."""

LONGEST_NAME = 64
FIRST_NAME = "first key"

SHORTEST_PUBLIC = 16
"""Characters that --api-key needs where other machines can reach the server: a short one can be guessed."""

LONGEST_SINGLE = 4096
"""Bytes of the largest file with a single key."""

LONGEST_FILE = 8 << 20
"""Bytes of the largest file of keys: some 40,000 of them."""

RETRY = 1.0
"""Seconds until a file that could not be read is tried again."""

log = logging.getLogger(__name__)


class Key(msgspec.Struct, frozen=True):
    """A stored key: its hash, not the key itself. `created` is in seconds since the epoch.

    A key with the role "admin" may also load, unload and fetch models. Files of versions without roles have none: their keys
    may do what they could do then.
    """

    name: str
    tier: Tier
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    created: int
    role: Role = "admin"

    @property
    def id(self) -> str:
        return self.sha256[:8]


class _File(msgspec.Struct):
    keys: tuple[Key, ...]


Version = tuple[int, ...] | None
"""Differs after each change of the file; None if there is no file."""


class KeyStore:
    """The file of keys on this machine, by default keys.json in `settings.home()`; the first key creates it."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = home() / "keys.json" if path is None else path

    def version(self) -> Version:
        """Return the version of the file, for the price of one stat."""
        try:
            stat = self.path.stat()
        except FileNotFoundError:
            return (errno.ENOENT,) if self.path.is_symlink() else None
        except OSError as error:
            return (error.errno or 0,)
        return stat.st_mtime_ns, stat.st_ino, stat.st_size, stat.st_mode

    def read(self) -> tuple[Key, ...]:
        """Return all keys, oldest first. Raises ConfigError for a file that cannot be used."""
        try:
            return msgspec.json.decode(private_files.read_regular(self.path, LONGEST_FILE), type=_File).keys
        except FileNotFoundError:
            if not self.path.is_symlink():
                return ()
            reason: object = "it is a link to a file that is missing"
        except OSError as error:
            reason = error.strerror
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            reason = error
        raise ConfigError(f"{self.path}: the file of API keys cannot be used: {reason}; repair or remove it")

    def create(self, name: str, tier: Tier, role: Role = "use") -> tuple[Key, str]:
        """Add a key, and return it and its secret, which is stored nowhere.

        Raises ConfigError for an unusable name; SaveError if the file cannot be written: then it stays as it was.
        """
        if not name.strip() or not name.isprintable() or len(name) > LONGEST_NAME:
            raise ConfigError(f"name: must be 1 to {LONGEST_NAME} printable characters, got {name!r}")
        secret = new_secret()
        key = Key(name, tier, _digest(secret), int(time.time()), role)
        with self._locked():
            keys = self.read()
            if any(each.name == name for each in keys):
                raise ConfigError(f"name: there is a key {name!r} already; choose another name, or revoke that one first")
            self._write((*keys, key))
        return key, secret

    def revoke(self, name: str) -> Key:
        """Remove and return the key with this name, or else this id. Raises ConfigError when there is none, and SaveError."""
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
        """Lock the file against other writers, processes and threads; readers need no lock. Raises SaveError for an OSError."""
        from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]  # as the model store's; imports slowly

        lock = self.path.with_suffix(".lock")
        try:
            private_files.make_folder(self.path.parent)
            private_files.touch(lock)
            with WeakFileLock(lock):
                yield
        except OSError as error:
            raise SaveError(self.path, f"{error.strerror or error}; the keys stay as they were") from None

    def _write(self, keys: Iterable[Key]) -> None:
        private_files.replace(self.path, msgspec.json.format(msgspec.json.encode(_File(tuple(keys)))))


class Keyring:
    """The keys that a running server accepts, and whether it requires one. For one thread.

    The store's file is read again whenever it has changed. An unusable file raises ConfigError at construction; later the keys
    stay as they were, the error is logged, and a key is required until the file can be read. `public` means that other machines
    can reach the server; `restarted`, that it died and was started again: a file without keys had some then.
    """

    def __init__(self, settings: ServerSettings, store: KeyStore, public: bool = False, *, restarted: bool = False) -> None:
        self.public = public
        self._auth = settings.auth
        self._single = _single(with_key_file(settings).api_key, public and settings.auth)
        self._store = store
        self._version = store.version()
        self._keys = store.read()
        self._protected = public or bool(self._single or self._keys) or (restarted and self._version is not None)
        self._failure = ""
        self._retry = math.inf

    @property
    def required(self) -> bool:
        """True if a request needs a key. Once true it stays so: revoking the last key must not open the server."""
        self._refresh()
        return self._auth and self._protected

    @property
    def several(self) -> bool:
        """True if more than one key is valid."""
        self._refresh()
        return len(self._single) + len(self._keys) > 1

    @property
    def readable(self) -> bool:
        """False while the file cannot be read: a key that is not known may be in it."""
        return not self._failure

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
        if version == self._version and time.monotonic() < self._retry:
            return
        self._version = version
        try:
            self._keys = self._store.read()
        except ConfigError as error:
            if str(error) != self._failure:
                log.error("%s; the keys stay as they were", error)
            self._failure, self._retry, self._protected = str(error), time.monotonic() + RETRY, True
        else:
            self._failure, self._retry, self._protected = "", math.inf, self._protected or bool(self._keys)
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
    if settings.api_key is not None or settings.api_key_file is not None or store.read():
        return None
    return store.create(FIRST_NAME, "pro", "admin")[1]


def with_key_file(settings: ServerSettings) -> ServerSettings:
    """Return the settings with the key of --api-key-file as their `api_key`. Raises ConfigError for an unusable file."""
    if settings.api_key_file is None:
        return settings
    if settings.api_key is not None:
        raise ConfigError("api_key_file: there is an api_key already; set one of the two")
    path = Path(settings.api_key_file).expanduser()
    try:
        secret = private_files.read_regular(path, LONGEST_SINGLE).decode("ascii").strip()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no ASCII text"
        raise ConfigError(f"api_key_file: {path} cannot be used: {reason}") from None
    if not secret:
        raise ConfigError(f"api_key_file: {path} is empty; it must hold the key")
    return dataclasses.replace(settings, api_key=secret, api_key_file=None)


def _single(secret: str | None, public: bool) -> tuple[Key, ...]:
    """Return the key of --api-key, if any. Raises ConfigError for an empty one: --api-key "$KEY" never means an open server.
    A short one is refused where the server is `public`."""
    if secret is None:
        return ()
    if not secret.isascii() or not secret.isprintable() or " " in secret or not secret:
        raise ConfigError("api_key: must be one or more ASCII characters without blanks")
    if public and len(secret) < SHORTEST_PUBLIC:
        raise ConfigError(
            f"api_key: must have {SHORTEST_PUBLIC} characters or more where other machines can reach the server, got"
            f" {len(secret)}; `locallab keys create --name NAME` creates a key that cannot be guessed"
        )
    return (Key("--api-key", "pro", _digest(secret), int(time.time()), "admin"),)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
