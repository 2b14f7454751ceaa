"""The API keys that a running server accepts."""

from __future__ import annotations

import dataclasses
import hmac
import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path

from locallab import private_files, redis_link
from locallab.errors import ConfigError, LocalLabError
from locallab.keys.key import Key, sha256_of
from locallab.keys.shared import SharedKeys, SharedKeyStore
from locallab.keys.store import KeyStore
from locallab.settings import ServerSettings

FIRST_NAME = "first key"

SHORTEST_PUBLIC = 16
"""Characters that --api-key needs where other machines can reach the server: a short one can be guessed."""

LONGEST_SINGLE = 4096
"""Bytes of the largest file with a single key."""

RETRY = 1.0
"""Seconds until a file that could not be read is tried again."""

log = logging.getLogger(__name__)


class Keyring:
    """The keys that a running server accepts, and whether it requires one. For one thread.

    They are those of the store's file, that of the settings, and with `redis_url` those in Redis, which a thread watches until
    `close`. The file is read again whenever it has changed. An unusable one raises ConfigError at construction; later the keys
    stay as they were, the error is logged, and a key is required until the file can be read. While Redis is gone its keys stay
    as they were, too; if they never were known, a key is required. `public` means that other machines can reach the server;
    `restarted`, that it died and was started again: a file without keys had some then.
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
        self._shared = shared_keys(settings, restarted)

    @property
    def required(self) -> bool:
        """True if a request needs a key. Once true it stays so: revoking the last key must not open the server."""
        self._refresh()
        return self._auth and (self._protected or (self._shared is not None and self._shared.protects))

    @property
    def any(self) -> bool:
        """True if a key is valid."""
        self._refresh()
        return bool(self._all())

    @property
    def several(self) -> bool:
        """True if more than one key is valid."""
        self._refresh()
        return len(self._all()) > 1

    @property
    def readable(self) -> bool:
        """False while the file or Redis cannot be read: a key that is not known may be there."""
        return not self._failure and (self._shared is None or self._shared.readable)

    def find(self, presented: Sequence[str]) -> Key | None:
        """Return the key of the first valid secret in `presented`, comparing in constant time."""
        self._refresh()
        for secret in presented:
            digest, match = sha256_of(secret), None
            for key in self._all():
                if hmac.compare_digest(key.sha256, digest):
                    match = key
            if match is not None:
                return match
        return None

    def has(self, key: Key) -> bool:
        """Return True if a key from `find` is still valid."""
        self._refresh()
        return key in self._all()

    def reload(self) -> None:
        """Read the keys in Redis now. Blocks."""
        if self._shared is not None:
            self._shared.refresh()

    def close(self) -> None:
        """Stop watching the keys in Redis. Blocks; may be called again."""
        if self._shared is not None:
            self._shared.close()

    def _all(self) -> tuple[Key, ...]:
        return (*self._single, *self._keys, *(self._shared.keys if self._shared else ()))

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


def ensure_key(settings: ServerSettings, store: KeyStore, public: bool) -> str | None:
    """Create the first key of a server that other machines can reach, and return its secret, which can be shown only now.

    With `redis_url` it is created there, for all servers. Returns None if there is a key, if other machines cannot reach the
    server, while Redis is gone, and with --no-auth, after a warning in the log.
    """
    if not public:
        return None
    if not settings.auth:
        log.warning("--no-auth: anyone who can reach this server may use it without a key")
        return None
    if settings.api_key is not None or settings.api_key_file is not None or store.read():
        return None
    if settings.redis_url is None:
        return store.create(FIRST_NAME, "pro", "admin")[1]
    try:
        with redis_link.asking(settings.redis_url) as client:
            shared = SharedKeyStore(client)
            return None if shared.read() else shared.create(FIRST_NAME, "pro", "admin")[1]
    except LocalLabError as error:  # or another server has created it just now
        log.warning("no first key is created: %s", error)
        return None


def shared_keys(settings: ServerSettings, restarted: bool) -> SharedKeys | None:
    """Return the keys in Redis, which a thread watches, if the settings name one. Raises ConfigError for a wrong address."""
    url = settings.redis_url
    return SharedKeys(SharedKeyStore(redis_link.connect(url)), restarted=restarted) if url else None


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
    return (Key("--api-key", "pro", sha256_of(secret), int(time.time()), "admin"),)
