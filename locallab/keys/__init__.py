"""API keys: what is stored of them, in a file of this machine or in Redis, and which a running server accepts."""

from locallab.keys.key import PREFIX, Key, Role, Tier, new_secret
from locallab.keys.keyring import FIRST_NAME, Keyring, ensure_key, with_key_file
from locallab.keys.shared import SharedKeyStore
from locallab.keys.store import KeyStore

__all__ = [
    "FIRST_NAME",
    "PREFIX",
    "Key",
    "KeyStore",
    "Keyring",
    "Role",
    "SharedKeyStore",
    "Tier",
    "ensure_key",
    "new_secret",
    "with_key_file",
]
