"""API keys in the Redis that several servers share."""

from __future__ import annotations

import logging
import threading
import uuid
from typing import TYPE_CHECKING, Any

import msgspec

from locallab import redis_link
from locallab.errors import ConfigError
from locallab.keys.key import Key, Role, Tier, named, new_key, taken

if TYPE_CHECKING:
    from redis import Redis

REFRESH = 0.5
"""Seconds until a server notices a change."""

_CREATE = """
if redis.call('HSETNX', KEYS[1], ARGV[1], ARGV[2]) == 0 then return 0 end
redis.call('SET', KEYS[2], ARGV[3])
return 1
"""

log = logging.getLogger(__name__)


class SharedKeyStore:
    """The keys in Redis: a hash of them by name, and a version that each change sets anew.

    Methods raise what `redis_link.failures` lists.
    """

    _keys = f"{redis_link.PREFIX}:keys"
    _version = f"{redis_link.PREFIX}:keys:version"

    def __init__(self, client: Redis) -> None:
        self._client: Any = client
        self._create = client.register_script(_CREATE)

    def version(self) -> bytes | None:
        """Return the version of the keys; None if there never was one."""
        version: bytes | None = self._client.get(self._version)
        return version

    def read(self) -> tuple[Key, ...]:
        """Return all keys, oldest first. Raises ConfigError for one that cannot be used."""
        keys = []
        for name, content in self._client.hgetall(self._keys).items():
            try:
                keys.append(msgspec.json.decode(content, type=Key))
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                raise ConfigError(
                    f"{name.decode(errors='replace')!r} in Redis's hash {self._keys} is no API key: {error}; HDEL removes it"
                ) from None
        return tuple(sorted(keys, key=lambda key: (key.created, key.name)))

    def create(self, name: str, tier: Tier, role: Role = "use") -> tuple[Key, str]:
        """Add a key, and return it and its secret, which is stored nowhere. Raises ConfigError for an unusable name."""
        key, secret = new_key(name, tier, role)
        if not self._create((self._keys, self._version), (name, msgspec.json.encode(key), uuid.uuid4().hex)):
            raise taken(name)
        return key, secret

    def revoke(self, name: str) -> Key:
        """Remove and return the key with this name, or else this id. Raises ConfigError when there is none."""
        key = named(self.read(), name)
        with self._client.pipeline() as pipeline:
            pipeline.hdel(self._keys, key.name).set(self._version, uuid.uuid4().hex).execute()
        return key

    def close(self) -> None:
        """Close the connections to Redis."""
        self._client.close()


class SharedKeys:
    """The keys in Redis as last known: a thread of its own reads them again within REFRESH seconds of a change.

    While Redis is gone they stay as they were, and also when it has lost them, until there are new ones. `keys` may be read
    from any thread. `protects` is True once there was a key, and until it is known that there is none; `restarted` means that
    the server died and was started again: if there was a key ever, there was one then.
    """

    def __init__(self, store: SharedKeyStore, *, restarted: bool = False) -> None:
        self.keys: tuple[Key, ...] = ()
        self.readable = False
        self._store = store
        self._restarted = restarted
        self._version: bytes | None = None
        self._known = self._had = False
        self._failure = ""
        self._outage = redis_link.Outage("keys", "the keys last known stay valid")
        self._closed = threading.Event()
        self._reading = threading.Lock()
        self.refresh()
        self._thread = threading.Thread(target=self._watch, name="shared keys", daemon=True)
        self._thread.start()

    @property
    def protects(self) -> bool:
        return self._had or not self._known

    def refresh(self) -> None:
        """Read the keys if they have changed. Blocks, for twice redis_link.PATIENCE at most; a failure is logged."""
        with self._reading:
            try:
                version = self._store.version()
                if version is None and self._version is not None:
                    raise ConfigError("Redis has lost its API keys: it was emptied, or keeps nothing over its restart")
                if version != self._version or not self.readable:
                    self._set(self._store.read(), version)
            except ConfigError as error:
                if str(error) != self._failure:
                    log.error("%s; the keys stay as they were", error)
                self._failure, self.readable = str(error), False
                self._outage.over()
            except redis_link.failures() as error:
                self._outage.failed(error, None if self._known else "a key is required, and those in Redis are not known yet")
                self.readable = False
            else:
                self._failure = ""
                self._outage.over()

    def close(self) -> None:
        """End the thread. Blocks while it asks Redis."""
        self._closed.set()
        self._thread.join()
        self._store.close()

    def _set(self, keys: tuple[Key, ...], version: bytes | None) -> None:
        if self._known and version != self._version:
            log.info("read the API keys in Redis again: %d", len(keys))
        self._had = self._had or bool(keys) or (self._restarted and version is not None)
        self.keys, self._version, self._known, self.readable = keys, version, True, True

    def _watch(self) -> None:
        while not self._closed.wait(redis_link.PAUSE if self._outage.lasts else REFRESH):
            self.refresh()
