"""The file of API keys of one machine."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from locallab import private_files
from locallab.errors import ConfigError, SaveError
from locallab.keys.key import Key, Role, Tier, named, new_key, taken
from locallab.settings import home

LONGEST_FILE = 8 << 20
"""Bytes of the largest file of keys: some 40,000 of them."""

Version = tuple[int, ...] | None
"""Differs after each change of the file; None if there is no file."""


class _File(msgspec.Struct):
    keys: tuple[Key, ...]


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
        key, secret = new_key(name, tier, role)
        with self._locked():
            keys = self.read()
            if any(each.name == name for each in keys):
                raise taken(name)
            self._write((*keys, key))
        return key, secret

    def revoke(self, name: str) -> Key:
        """Remove and return the key with this name, or else this id. Raises ConfigError when there is none, and SaveError."""
        with self._locked():
            keys = self.read()
            revoked = named(keys, name)
            self._write([key for key in keys if key is not revoked])
        return revoked

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
