"""One API key: what is stored of it, and how a new one is made.

Stored is the SHA-256 of a key, never the key. A slow hash, as for passwords, would add nothing: a key has 256 random bits,
which cannot be guessed however fast the hash is, and the key of every request has to be hashed.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from locallab.errors import ConfigError

Tier = Literal["free", "pro"]
Role = Literal["use", "admin"]

PREFIX = "ll-"
"""Prefix of every key, by which people and secret scanners recognize one."""

LONGEST_NAME = 64


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


def new_secret() -> str:
    """Return a new random key."""
    return PREFIX + secrets.token_urlsafe(32)


def new_key(name: str, tier: Tier, role: Role) -> tuple[Key, str]:
    """Return a new key and its secret, which is stored nowhere. Raises ConfigError for an unusable name."""
    if not name.strip() or not name.isprintable() or len(name) > LONGEST_NAME:
        raise ConfigError(f"name: must be 1 to {LONGEST_NAME} printable characters, got {name!r}")
    secret = new_secret()
    return Key(name, tier, sha256_of(secret), int(time.time()), role), secret


def taken(name: str) -> ConfigError:
    """Return the error of a name that a key has already."""
    return ConfigError(f"name: there is a key {name!r} already; choose another name, or revoke that one first")


def named(keys: Sequence[Key], name: str) -> Key:
    """Return the key with this name, or else this id. Raises ConfigError when there is none."""
    for key in [key for key in keys if key.name == name] + [key for key in keys if key.id == name]:
        return key
    known = ", ".join(repr(key.name) for key in keys) or "none"
    raise ConfigError(f"there is no key {name!r}; known: {known}")


def sha256_of(secret: str) -> str:
    """Return what is stored of a secret."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
