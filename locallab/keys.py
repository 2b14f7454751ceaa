"""API keys: the file they lie in, and the keys a running server accepts.

The file holds the SHA-256 of each key, never the key. A slow hash, as passwords need it, would add nothing: a key is 256
random bits, which nobody guesses however fast the hash is, and every request has to be hashed.
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
"""What every key begins with, so that people and scanners of source code know one when they see it."""

LONGEST_NAME = 64
FIRST_NAME = "first key"

log = logging.getLogger(__name__)


class Key(msgspec.Struct, frozen=True):
    """What is known of a key: not the key itself. `created` is in seconds since the epoch."""

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
"""Differs whenever the file has been changed; None: there is no file."""


class KeyStore:
    """The keys on this machine. `path` None is keys.json of `settings.home()`; it is made when the first key is."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = home() / "keys.json" if path is None else path

    def version(self) -> Version:
        """Changes nothing; costs one look at the file's entry, not at its content."""
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino, found.st_size

    def read(self) -> tuple[Key, ...]:
        """All keys, oldest first. Changes nothing. Raises ConfigError for a file that cannot be used."""
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=_File).keys
        except FileNotFoundError:
            return ()
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise ConfigError(f"{self.path}: the file of API keys cannot be used: {reason}; mend it or move it away") from None

    def create(self, name: str, tier: Tier) -> tuple[Key, str]:
        """Adds a key; gives it and its secret, which is kept nowhere. Raises ConfigError for a name that cannot be used."""
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
        """Removes the key of this name, or else of this id, and returns it. Raises ConfigError when there is none."""
        with self._locked():
            keys = self.read()
            found = next((key for key in keys if key.name == name), None) or next((key for key in keys if key.id == name), None)
            if found is None:
                known = ", ".join(repr(key.name) for key in keys) or "none"
                raise ConfigError(f"there is no key {name!r}; known: {known}")
            self._write([key for key in keys if key is not found])
        return found

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Holds the file against other processes and threads that change it; readers need no lock."""
        from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]  # as the model store's; imports slowly

        self.path.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(self.path.with_suffix(".lock")):
            yield

    def _write(self, keys: Iterable[Key]) -> None:
        """Replaces the file: a reader finds the old one or the new one, and only its owner can read either."""
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
    """The keys a running server accepts, and whether it asks for one. For one thread.

    The store's file is looked at again whenever it has changed. A damaged one is a ConfigError here at the start; later the
    keys stay as they were, and the log says why. `public`: the server can be reached from beyond this machine.
    """

    def __init__(self, settings: ServerSettings, store: KeyStore, public: bool = False) -> None:
        self.public = public
        self._auth = settings.auth
        self._single = _single(settings.api_key)
        self._store = store
        self._version = store.version()
        self._keys = store.read()
        self._asked = False

    @property
    def required(self) -> bool:
        """Whether a request needs a key. Once it did it always does: taking the last key away must not open the server."""
        self._refresh()
        self._asked = self._asked or self.public or bool(self._single or self._keys)
        return self._auth and self._asked

    def find(self, presented: Sequence[str]) -> Key | None:
        """The first key that one of `presented` is, without telling by its time which, or how nearly."""
        self._refresh()
        for secret in presented:
            digest, found = _digest(secret), None
            for key in (*self._single, *self._keys):
                if hmac.compare_digest(key.sha256, digest):
                    found = key
            if found is not None:
                return found
        return None

    def has(self, key: Key) -> bool:
        """Whether a key that was found is still valid."""
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
    """A key that nobody has yet."""
    return PREFIX + secrets.token_urlsafe(32)


def ensure_key(settings: ServerSettings, store: KeyStore, public: bool) -> str | None:
    """Makes the first key of a server that can be reached from beyond this machine; returns the secret to show, once.

    None where there are keys already, where nobody beyond this machine can reach the server, and with --no-auth, of which the
    log warns then.
    """
    if not public:
        return None
    if not settings.auth:
        log.warning("--no-auth: whoever reaches this server from other machines may use it without a key")
        return None
    if settings.api_key is not None or store.read():
        return None
    return store.create(FIRST_NAME, "pro")[1]


def _single(secret: str | None) -> tuple[Key, ...]:
    """The key of --api-key, if any. An empty one is refused: who writes --api-key "$KEY" does not mean an open server."""
    if secret is None:
        return ()
    if not secret.isascii() or not secret.isprintable() or " " in secret or not secret:
        raise ConfigError("api_key: must be one or more ASCII characters without blanks")
    return (Key("--api-key", "pro", _digest(secret), int(time.time())),)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
