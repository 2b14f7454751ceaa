from __future__ import annotations

import base64
import dataclasses
import errno
import hashlib
import json
import logging
import math
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from locallab import settings
from locallab.errors import ConfigError, SaveError
from locallab.keys import FIRST_NAME, Keyring, KeyStore, ensure_key, with_key_file
from locallab.settings import ServerSettings

ROOT = Path(__file__).parents[2]


@pytest.fixture
def store(tmp_path: Path) -> KeyStore:
    return KeyStore(tmp_path / "deep" / "keys.json")


def keyring(store: KeyStore, public: bool = False, **options: Any) -> Keyring:
    return Keyring(ServerSettings(**options), store, public)


def test_only_a_hash_is_kept(store: KeyStore) -> None:
    key, secret = store.create("alice", "pro")
    assert secret.startswith("ll-") and len(base64.urlsafe_b64decode(secret[3:] + "=")) == 32
    assert key.sha256 == hashlib.sha256(secret.encode()).hexdigest()
    assert (key.name, key.tier, key.id) == ("alice", "pro", key.sha256[:8])
    assert store.read() == (key,)
    assert secret not in store.path.read_text() and secret[3:] not in store.path.read_text()


def test_only_the_owner_can_read_the_file_and_nothing_else_is_left(store: KeyStore) -> None:
    store.create("a", "free")
    store.path.chmod(0o644)
    store.create("b", "free")
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600
    assert sorted(path.name for path in store.path.parent.iterdir()) == ["keys.json", "keys.lock"]


def test_the_default_place_is_under_home() -> None:
    assert KeyStore().path == settings.home() / "keys.json"


def test_a_failed_write_leaves_the_old_file(store: KeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store.create("a", "free")
    before = store.path.read_bytes()
    monkeypatch.setattr("locallab.private_files.os.fsync", fail)
    for change in (lambda: store.create("b", "free"), lambda: store.revoke("a")):
        with pytest.raises(SaveError, match=f"^cannot write {store.path}: No space left on device; the keys stay"):
            change()
    assert store.path.read_bytes() == before
    assert sorted(path.name for path in store.path.parent.iterdir()) == ["keys.json", "keys.lock"]


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "x" * 65, "\x1b[31m"], ids=["empty", "blank", "line", "long", "escape"])
def test_names_that_cannot_be_used(store: KeyStore, name: str) -> None:
    with pytest.raises(ConfigError, match=r"^name: must be 1 to 64 printable characters"):
        store.create(name, "free")
    assert not store.path.exists()


def test_no_two_keys_share_a_name(store: KeyStore) -> None:
    store.create("alice", "free")
    with pytest.raises(ConfigError, match="there is a key 'alice' already"):
        store.create("alice", "pro")
    assert [key.tier for key in store.read()] == ["free"]


def test_roles(store: KeyStore) -> None:
    assert [store.create("a", "free")[0].role, store.create("b", "free", "admin")[0].role] == ["use", "admin"]
    assert [key.role for key in store.read()] == ["use", "admin"]
    single = keyring(store, api_key="sesame").find(["sesame"])
    assert single is not None and single.role == "admin"


def test_keys_of_files_without_roles_may_do_everything(store: KeyStore) -> None:
    store.path.parent.mkdir()
    store.path.write_text(json.dumps({"keys": [{"name": "old", "tier": "free", "sha256": HASH, "created": 1}]}))
    store.create("new", "free")
    assert [(key.name, key.role) for key in store.read()] == [("old", "admin"), ("new", "use")]
    assert [each["role"] for each in json.loads(store.path.read_text())["keys"]] == ["admin", "use"]


def test_revoke_by_name_or_id(store: KeyStore) -> None:
    (a, _), (b, _), (c, _) = (store.create(name, "free") for name in "abc")
    assert store.revoke("b") == b
    assert store.revoke(a.id) == a
    assert store.read() == (c,)
    with pytest.raises(ConfigError, match="there is no key 'b'; known: 'c'"):
        store.revoke("b")


def test_a_name_goes_before_another_keys_id(store: KeyStore) -> None:
    a, _ = store.create("a", "free")
    b, _ = store.create(a.id, "free")
    assert store.revoke(a.id) == b


HASH = "0" * 64

DAMAGED = {
    "empty": b"",
    "no JSON": b"{",
    "no UTF-8": b'{"keys": [{"name": "\xff"}]}',
    "a list": b"[]",
    "no keys": b"{}",
    "a role nobody knows": json.dumps(
        {"keys": [{"name": "a", "tier": "pro", "sha256": HASH, "created": 1, "role": "root"}]}
    ).encode(),
    "a tier nobody knows": json.dumps({"keys": [{"name": "a", "tier": "gold", "sha256": HASH, "created": 1}]}).encode(),
    "no hash": json.dumps({"keys": [{"name": "a", "tier": "pro", "sha256": "secret", "created": 1}]}).encode(),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_told_at_the_start(store: KeyStore, content: bytes) -> None:
    store.path.parent.mkdir()
    store.path.write_bytes(content)
    for attempt in (store.read, lambda: keyring(store), lambda: store.create("a", "free")):
        with pytest.raises(ConfigError, match=f"^{store.path}: the file of API keys cannot be used: "):
            attempt()
    assert store.path.read_bytes() == content


UNREADABLE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a folder": (lambda path: path.mkdir(), "Is a directory"),
    "a FIFO": (os.mkfifo, "it is not a regular file"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "it is not a regular file"),
    "a link to nothing": (lambda path: path.symlink_to("nothing"), "it is a link to a file that is missing"),
    "a link to itself": (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
}


@pytest.mark.parametrize(("make", "reason"), UNREADABLE.values(), ids=UNREADABLE)
def test_a_file_that_cannot_be_read_is_told(store: KeyStore, make: Any, reason: str) -> None:
    store.path.parent.mkdir(parents=True)
    make(store.path)
    for attempt in (store.read, lambda: keyring(store), lambda: store.create("a", "free")):
        with pytest.raises(ConfigError, match=f"the file of API keys cannot be used: {reason}; repair or remove it$"):
            attempt()


@pytest.mark.parametrize(("make", "reason"), UNREADABLE.values(), ids=UNREADABLE)
def test_a_file_that_cannot_be_read_opens_nothing(store: KeyStore, make: Any, reason: str) -> None:
    store.path.parent.mkdir(parents=True)
    ring = keyring(store)
    assert not ring.required and ring.readable
    make(store.path)
    assert ring.required and not ring.readable


def test_a_read_that_failed_is_tried_again(store: KeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> bytes:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    ring = keyring(store)
    with monkeypatch.context() as patch:
        patch.setattr("locallab.private_files.read_regular", fail)
        store.path.parent.mkdir()
        store.path.write_text('{"keys": []}')
        assert ring.required and not ring.readable
    monkeypatch.setattr("locallab.keys.keyring.time.monotonic", lambda: math.inf)
    assert ring.required and ring.readable


def test_keys_are_private_whatever_the_umask(tmp_path: Path) -> None:
    code = "import os, sys; os.umask(0); from locallab import cli; cli.main(['keys', 'create', '--name', 'a'])"
    home = tmp_path / "a" / "b"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "LOCALLAB_HOME": str(home)})
    modes = {str(path.relative_to(tmp_path)): stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert done.returncode == 0
    assert modes == {"a": 0o700, "a/b": 0o700, "a/b/keys.json": 0o600, "a/b/keys.lock": 0o600}


def test_processes_do_not_lose_each_others_keys(store: KeyStore) -> None:
    code = """if True:
        import sys
        from pathlib import Path
        from locallab.keys import KeyStore
        for number in range(10):
            KeyStore(Path(sys.argv[1])).create(f"{sys.argv[2]} {number}", "free")
    """
    arguments = [sys.executable, "-c", code, str(store.path)]
    processes = [subprocess.Popen([*arguments, name], cwd=ROOT) for name in "abc"]
    assert [process.wait(120) for process in processes] == [0, 0, 0]
    assert {key.name for key in store.read()} == {f"{name} {number}" for name in "abc" for number in range(10)}


def test_find(store: KeyStore) -> None:
    (a, first), (b, second) = store.create("a", "free"), store.create("b", "pro")
    ring = keyring(store)
    assert ring.find([first]) == a
    assert ring.find(["none", second]) == b
    assert ring.find([]) is ring.find([""]) is ring.find([first[:-1]]) is ring.find([a.sha256]) is None
    assert ring.has(a) and ring.has(b)


@given(st.lists(st.text()))
def test_nothing_but_the_key_is_the_key(presented: list[str]) -> None:
    ring = keyring(KeyStore(Path("no such file")), api_key="the-key")
    assert ring.find(presented) is None


def test_the_single_key_is_pro(store: KeyStore) -> None:
    ring = keyring(store, api_key="sesame")
    found = ring.find(["sesame"])
    assert found is not None and (found.tier, ring.has(found)) == ("pro", True)
    assert ring.find(["sesam"]) is None
    assert not store.path.exists()


@pytest.mark.parametrize("key", ["", " ", "a b", "a\n", "schlüssel"])
def test_a_single_key_that_no_header_can_carry(store: KeyStore, key: str) -> None:
    with pytest.raises(ConfigError, match=r"^api_key: must be one or more ASCII characters without blanks$"):
        keyring(store, api_key=key)


RULES = [
    # auth, public, --api-key, keys in the file -> required
    (True, False, False, False, False),
    (True, False, False, True, True),
    (True, False, True, False, True),
    (True, True, False, False, True),
    (True, True, True, True, True),
    (False, False, True, True, False),
    (False, True, False, False, False),
]


@pytest.mark.parametrize(("auth", "public", "single", "stored", "required"), RULES)
def test_when_a_key_is_required(store: KeyStore, auth: bool, public: bool, single: bool, stored: bool, required: bool) -> None:
    if stored:
        store.create("a", "free")
    assert keyring(store, public, auth=auth, api_key="k" * 16 if single else None).required is required


def test_a_short_single_key_is_for_this_machine_only(store: KeyStore) -> None:
    assert keyring(store, api_key="k" * 15).required
    assert keyring(store, public=True, api_key="k" * 16).required
    assert not keyring(store, public=True, api_key="k", auth=False).required
    with pytest.raises(ConfigError, match=r"^api_key: must have 16 characters or more .* got 15; `locallab keys create"):
        keyring(store, public=True, api_key="k" * 15)


def test_a_single_key_in_a_file(store: KeyStore, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("sesame\n")
    ring = keyring(store, api_key_file=str(file))
    assert ring.required and ring.find(["sesame"]) is not None and ring.find(["sesame\n"]) is None
    assert with_key_file(ServerSettings(api_key_file=str(file))) == ServerSettings(api_key="sesame")
    assert with_key_file(ServerSettings()) == ServerSettings()
    assert ensure_key(ServerSettings(api_key_file=str(file)), store, public=True) is None


KEY_FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "none": (lambda path: None, "cannot be used: No such file or directory"),
    "a folder": (lambda path: path.mkdir(), "cannot be used: Is a directory"),
    "a FIFO": (os.mkfifo, "cannot be used: it is not a regular file"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "cannot be used: it is not a regular file"),
    "large": (lambda path: path.write_bytes(b"a" * 5000), "cannot be used: it has more than 4,096 bytes"),
    "no ASCII": (lambda path: path.write_bytes(b"\xff"), "cannot be used: it is no ASCII text"),
    "blank": (lambda path: path.write_text(" \n"), "is empty"),
}


@pytest.mark.parametrize(("make", "reason"), KEY_FILES.values(), ids=KEY_FILES)
def test_a_file_that_holds_no_single_key(store: KeyStore, tmp_path: Path, make: Any, reason: str) -> None:
    make(tmp_path / "secret")
    with pytest.raises(ConfigError, match=f"^api_key_file: {tmp_path}/secret {reason}"):
        keyring(store, api_key_file=str(tmp_path / "secret"))


def test_one_single_key_is_enough(store: KeyStore) -> None:
    with pytest.raises(ConfigError, match=r"^api_key_file: there is an api_key already"):
        keyring(store, api_key="k", api_key_file="f")


def test_changes_are_seen_without_a_restart(store: KeyStore) -> None:
    ring = keyring(store)
    assert not ring.required
    key, secret = store.create("a", "free")
    assert ring.required and ring.find([secret]) == key
    store.revoke("a")
    assert ring.find([secret]) is None and not ring.has(key)


BREAK: dict[str, Callable[[KeyStore], Any]] = {
    "revoked": lambda store: store.revoke("a"),
    "deleted": lambda store: store.path.unlink(),
}


@pytest.mark.parametrize("lose", BREAK.values(), ids=BREAK)
def test_losing_the_last_key_opens_nothing(store: KeyStore, lose: Callable[[KeyStore], Any]) -> None:
    _, secret = store.create("a", "free")
    ring = keyring(store)
    assert ring.required
    lose(store)
    assert ring.required and ring.find([secret]) is None


def test_a_restart_opens_no_server_whose_last_key_was_revoked(store: KeyStore) -> None:
    assert not Keyring(ServerSettings(), store, restarted=True).required
    store.create("a", "free")
    store.revoke("a")
    assert Keyring(ServerSettings(), store, restarted=True).required
    assert not Keyring(ServerSettings(), store).required


def test_a_file_damaged_later_is_logged_once_and_changes_nothing(store: KeyStore, caplog: pytest.LogCaptureFixture) -> None:
    key, secret = store.create("a", "free")
    ring, good = keyring(store), store.path.read_bytes()
    store.path.write_bytes(b"{")
    for _ in range(3):
        assert ring.find([secret]) == key
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "cannot be used" in record.getMessage() and "stay as they were" in record.getMessage()
    store.path.write_bytes(good.replace(b'"free"', b'"pro"'))
    found = ring.find([secret])
    assert found is not None and found.tier == "pro"


def test_an_unchanged_file_is_not_read_again(store: KeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    _, secret = store.create("a", "free")
    ring = keyring(store)

    def fail(self: KeyStore) -> Any:
        raise AssertionError

    monkeypatch.setattr(KeyStore, "read", fail)
    assert ring.find([secret]) is not None


def test_the_first_key_is_made_once_and_only_beyond_this_machine(store: KeyStore, caplog: pytest.LogCaptureFixture) -> None:
    options = ServerSettings()
    assert ensure_key(options, store, public=False) is None
    assert ensure_key(dataclasses.replace(options, api_key="k"), store, public=True) is None
    assert ensure_key(dataclasses.replace(options, auth=False), store, public=False) is None
    assert caplog.records == [] and not store.path.exists()
    secret = ensure_key(options, store, public=True)
    assert secret is not None
    [key] = store.read()
    assert (key.name, key.tier, key.role) == (FIRST_NAME, "pro", "admin") and keyring(store).find([secret]) == key
    assert ensure_key(options, store, public=True) is None
    assert store.read() == (key,)


def test_no_auth_beyond_this_machine_is_warned_of(store: KeyStore, caplog: pytest.LogCaptureFixture) -> None:
    assert ensure_key(ServerSettings(auth=False), store, public=True) is None
    assert "--no-auth" in caplog.text and not store.path.exists()
