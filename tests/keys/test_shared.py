"""API keys in a real Redis, which comes and goes, and the servers and commands that use them."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis as client
from click.testing import CliRunner, Result

from locallab import cli, redis_link
from locallab.errors import ConfigError
from locallab.keys import FIRST_NAME, Keyring, KeyStore, SharedKeyStore, ensure_key, shared
from locallab.settings import ServerSettings
from tests.support.http_server import Served, start_in
from tests.support.redis_server import redis
from tests.support.wait import PATIENCE, free_port, until

BACK = "Redis is back: keys are shared again"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with redis(free_port()) as url:
        yield url


@pytest.fixture
def url(address: str) -> str:
    with client.Redis.from_url(address) as admin:
        admin.flushdb()
    return address


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_link, "PAUSE", 0.05)
    monkeypatch.setattr(shared, "REFRESH", 0.02)


@pytest.fixture
def store(url: str) -> Iterator[SharedKeyStore]:
    with redis_link.connect(url) as connection:
        yield SharedKeyStore(connection)


@contextlib.contextmanager
def keyring(url: str, folder: Path, public: bool = False, restarted: bool = False) -> Iterator[Keyring]:
    ring = Keyring(ServerSettings(redis_url=url), KeyStore(folder / "keys.json"), public, restarted=restarted)
    try:
        yield ring
    finally:
        ring.close()


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def status(served: Served, secret: str | None = None) -> int:
    return served.http.get("/v1/models", headers={"x-api-key": secret} if secret else {}).status_code


def test_keys_are_created_listed_and_revoked(store: SharedKeyStore, url: str) -> None:
    assert store.read() == () and store.version() is None
    first, secret = store.create("ann", "pro", "admin")
    version = store.version()
    second, _ = store.create("bob", "free")
    assert store.read() == (first, second) and version != store.version() and version is not None
    assert (first.name, first.tier, first.role, second.role) == ("ann", "pro", "admin", "use")
    with client.Redis.from_url(url) as admin:
        content = b"".join(admin.hgetall("locallab:keys").values())
        assert secret.encode() not in content and first.sha256.encode() in content
    for name, reason in (("ann", "there is a key 'ann' already"), (" ", "name: must be 1 to 64")):
        with pytest.raises(ConfigError, match=reason):
            store.create(name, "free")
    assert store.revoke(first.id) == first and store.revoke("bob") == second and store.read() == ()
    with pytest.raises(ConfigError, match="there is no key 'ann'; known: none"):
        store.revoke("ann")


def test_of_two_that_create_one_name_one_fails(url: str) -> None:
    done: list[object] = []

    def create() -> None:
        with redis_link.connect(url) as connection:
            try:
                done.append(SharedKeyStore(connection).create("same", "free"))
            except ConfigError as error:
                done.append(str(error))

    threads = [threading.Thread(target=create) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(isinstance(each, str) for each in done) == 7


def test_every_server_sees_a_change_soon_and_local_keys_stay_valid(url: str, store: SharedKeyStore, tmp_path: Path) -> None:
    _, secret = store.create("ann", "free")
    for name in "ab":
        (tmp_path / name).mkdir()
    _, local = KeyStore(tmp_path / "a" / "keys.json").create("here", "free")
    with (
        start_in(tmp_path / "a")(redis_url=url, api_key="single") as first,
        start_in(tmp_path / "b")(redis_url=url) as second,
    ):
        assert [status(served, secret) for served in (first, second)] == [200, 200]
        assert [status(first, each) for each in (local, "single", None)] == [200, 200, 401]
        assert [status(second, each) for each in (local, "single", None)] == [401, 401, 401]
        _, later = store.create("bob", "free")
        until(lambda: [status(served, later) for served in (first, second)] == [200, 200])
        store.revoke("ann")
        until(lambda: [status(served, secret) for served in (first, second)] == [401, 401])
        store.revoke("bob")
        until(lambda: status(second, later) == 401)
        assert status(second) == 401  # the last key that is revoked opens no server


def test_a_server_without_keys_is_open_until_there_is_one(url: str, store: SharedKeyStore, tmp_path: Path) -> None:
    with keyring(url, tmp_path) as ring:
        assert not ring.required and ring.readable and not ring.several
        key, secret = store.create("ann", "free")
        until(lambda: ring.required)
        assert ring.find([secret]) == key and ring.has(key)
        store.create("bob", "free")
        until(lambda: ring.several)


def test_a_restart_opens_no_server_whose_last_shared_key_was_revoked(url: str, store: SharedKeyStore, tmp_path: Path) -> None:
    with keyring(url, tmp_path, restarted=True) as ring:
        assert not ring.required
    store.create("ann", "free")
    store.revoke("ann")
    for restarted in (True, False):
        with keyring(url, tmp_path, restarted=restarted) as ring:
            assert ring.required is restarted


def test_while_redis_is_gone_its_keys_stay_valid(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    port, kept = free_port(), ("--appendonly", "yes", "--appendfsync", "always", "--dir", str(tmp_path))
    with contextlib.ExitStack() as running:
        url = running.enter_context(redis(port, *kept))
        with redis_link.connect(url) as connection:
            _, secret = SharedKeyStore(connection).create("ann", "free")
        with start_in(tmp_path)(redis_url=url) as served:
            running.close()
            until(lambda: status(served, "wrong") == 503)
            assert (status(served, secret), status(served)) == (200, 401)
            with redis(port, *kept):
                until(lambda: status(served, "wrong") == 401)
                assert status(served, secret) == 200
                gone, back = lines(caplog)
                assert "the keys last known stay valid" in gone and back == BACK


def test_keys_that_redis_has_lost_stay_valid_until_there_are_new_ones(
    url: str, store: SharedKeyStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, secret = store.create("ann", "free")
    with keyring(url, tmp_path) as ring, client.Redis.from_url(url) as admin:
        admin.flushdb()
        until(lambda: not ring.readable)
        assert ring.required and ring.find([secret])
        assert lines(caplog) == [
            "Redis has lost its API keys: it was emptied, or keeps nothing over its restart; the keys stay as they were"
        ]
        _, new = store.create("bob", "free")
        until(lambda: ring.find([new]) is not None)
        assert ring.readable and ring.find([secret]) is None


def test_a_server_that_starts_while_redis_is_gone_is_never_open(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    _, local = KeyStore(tmp_path / "local" / "keys.json").create("here", "free")
    with start_in(tmp_path)(redis_url=f"redis://127.0.0.1:{port}/0") as served:
        assert (status(served), status(served, "any")) == (401, 503)
        assert "a key is required, and those in Redis are not known yet" in lines(caplog)[0]
        with redis(port) as url, redis_link.connect(url) as connection:
            until(lambda: status(served) == 200)  # now it is known that there is no key
            _, secret = SharedKeyStore(connection).create("ann", "free")
            until(lambda: status(served) == 401)
            assert status(served, secret) == 200
    with keyring(f"redis://127.0.0.1:{port}/0", tmp_path / "local") as ring:
        assert ring.required and ring.find([local])


def test_losing_redis_closes_no_open_server(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with contextlib.ExitStack() as running:
        url = running.enter_context(redis(free_port()))
        with keyring(url, tmp_path) as ring:
            running.close()
            until(lambda: len(lines(caplog)) == 1)
            assert not ring.required


def test_a_redis_that_does_not_answer_holds_up_no_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        with start_in(tmp_path)(redis_url=url, api_key="single") as served:
            begun = time.monotonic()
            for _ in range(200):  # while the thread waits for Redis, half a second each time
                assert status(served, "single") == 200
            assert time.monotonic() - begun < PATIENCE


def test_a_damaged_key_is_logged_once_and_changes_nothing(
    url: str, store: SharedKeyStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, secret = store.create("ann", "free")
    with keyring(url, tmp_path) as ring, client.Redis.from_url(url) as admin:
        admin.hset("locallab:keys", "bad", "{")
        admin.set("locallab:keys:version", "other")
        until(lambda: not ring.readable)
        time.sleep(0.1)  # several looks
        assert ring.required and ring.find([secret])
        [line] = lines(caplog)
        assert "'bad' in Redis's hash locallab:keys is no API key" in line
        admin.hdel("locallab:keys", "bad")
        until(lambda: ring.readable)


def test_the_first_key_of_all_servers_is_made_once(url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options, store = ServerSettings(redis_url=url), KeyStore(tmp_path / "keys.json")
    with keyring(url, tmp_path, public=True) as ring:
        secret = ensure_key(options, store, public=True)
        assert secret and store.read() == ()
        ring.reload()
        found = ring.find([secret])
        assert found and (found.name, found.role) == (FIRST_NAME, "admin")
    assert ensure_key(options, KeyStore(tmp_path / "other.json"), public=True) is None
    gone = ServerSettings(redis_url=f"redis://127.0.0.1:{free_port()}/0")
    assert ensure_key(gone, store, public=True) is None and "no first key is created: redis_url: Redis at" in caplog.text


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, ["keys", *arguments])


def test_the_commands_work_on_redis(url: str, store: SharedKeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    run("create", "--name", "here")
    monkeypatch.setenv("LOCALLAB_REDIS_URL", url)
    created = json.loads(run("create", "--name", "ann", "--tier", "pro", "--json").stdout)
    [key] = store.read()
    assert (created["id"], created["tier"], created["role"]) == (key.id, "pro", "use")
    assert [each.name for each in KeyStore().read()] == ["here"]
    shown = [line.split()[1:] for line in run("list").stdout.splitlines()]
    assert shown[0][-2:] == ["valid", "on"] and [row[0] for row in shown[1:]] == ["ann", "here"]
    assert [row[-2:] for row in shown[1:]] == [["all", "servers"], ["this", "machine"]]
    listed = json.loads(run("list", "--json").stdout)
    assert [(each["name"], each["shared"]) for each in listed] == [("ann", True), ("here", False)]
    assert [each["name"] for each in json.loads(run("list", "--json", "--redis-url", "").stdout)] == ["here"]
    assert "there is a key 'ann' already" in run("create", "--name", "ann").stderr
    done = run("revoke", "ann")
    assert (done.stdout, done.stderr) == (f"revoked ann ({key.id})\n", "")
    assert "No key is left" in run("revoke", "here").stderr and KeyStore().read() == store.read() == ()
    assert run("revoke", "ann").exit_code == 2


@pytest.mark.parametrize(
    "arguments", [["create", "--name", "a"], ["list"], ["revoke", "a"]], ids=lambda arguments: arguments[0]
)
def test_a_command_without_its_redis_is_one_line(arguments: list[str]) -> None:
    done = run(*arguments, "--redis-url", "redis://:pass@127.0.0.1:1/0")
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith("locallab: redis_url: Redis at 127.0.0.1:1 fails: ") and "pass" not in done.stderr
    assert KeyStore().read() == ()
