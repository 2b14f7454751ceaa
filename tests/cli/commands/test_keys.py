from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from locallab import cli
from locallab.keys import Keyring, KeyStore
from locallab.server.usage import Slot, Spent, UsageFile, first_day
from locallab.settings import ServerSettings

ROOT = Path(__file__).parents[3]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, ["keys", *arguments])


def test_create_prints_the_key_and_nothing_else() -> None:
    done = run("create", "--name", "alice", "--tier", "pro")
    assert done.exit_code == 0
    assert done.stdout.startswith("ll-") and done.stdout.count("\n") == 1
    assert "shown only now" in done.stderr
    found = Keyring(ServerSettings(), KeyStore()).find([done.stdout.strip()])
    assert found is not None and (found.name, found.tier) == ("alice", "pro")


def test_create_as_json() -> None:
    created = json.loads(run("create", "--name", "alice", "--json").stdout)
    [key] = KeyStore().read()
    assert created.pop("key").startswith("ll-")
    assert created == {"id": key.id, "name": "alice", "tier": "free", "role": "use", "created": key.created}
    assert time.time() - 60 < key.created <= time.time()


def test_list_never_shows_a_key() -> None:
    assert run("list").stdout == "id  name  tier  role  created\n"
    assert run("list", "--json").stdout == "[]\n"
    secrets = [
        run("create", "--name", name, "--tier", tier, "--role", role).stdout.strip()
        for name, tier, role in [("alice b", "free", "use"), ("c", "pro", "admin")]
    ]
    first, second = KeyStore().read()
    shown = run("list")
    lines = shown.stdout.splitlines()
    assert lines[1].startswith(f"{first.id}  alice b  free  use    20")
    assert lines[2].startswith(f"{second.id}  c        pro   admin  20")
    listed = run("list", "--json").stdout
    assert [entry["name"] for entry in json.loads(listed)] == ["alice b", "c"]
    assert not any(secret in shown.output + listed for secret in secrets)


def test_revoke() -> None:
    run("create", "--name", "a")
    run("create", "--name", "b")
    first, second = KeyStore().read()
    done = run("revoke", "a")
    assert (done.exit_code, done.stdout, done.stderr) == (0, f"revoked a ({first.id})\n", "")
    done = run("revoke", second.id)
    assert done.stdout == f"revoked b ({second.id})\n" and "No key is left" in done.stderr
    assert KeyStore().read() == ()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["create"], "Missing option '--name'"),
        (["create", "--name", ""], "name: must be 1 to 64 printable characters"),
        (["create", "--name", "a", "--tier", "gold"], "'gold' is not one of 'free', 'pro'"),
        (["create", "--name", "a", "--role", "root"], "'root' is not one of 'use', 'admin'"),
        (["create", "--name", "there"], "there is a key 'there' already"),
        (["revoke", "nobody"], "there is no key 'nobody'; known: 'there'"),
    ],
    ids=["no name", "empty name", "tier", "role", "twice", "unknown"],
)
def test_what_cannot_be_done_is_one_line_and_status_2(arguments: list[str], reason: str) -> None:
    run("create", "--name", "there")
    done = run(*arguments)
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("locallab: ") and reason in done.stderr
    assert len(KeyStore().read()) == 1


def test_a_damaged_file_is_one_line_and_status_2() -> None:
    KeyStore().path.write_text("{")
    done = subprocess.run([sys.executable, "-m", "locallab", "keys", "list"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr.startswith(f"locallab: {KeyStore().path}: the file of API keys cannot be used")
        and done.stderr.count("\n") == 1
    )


def command(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    run = [sys.executable, "-m", "locallab", "keys", *arguments]
    return subprocess.run(run, cwd=ROOT, text=True, stderr=subprocess.PIPE, timeout=60, **options)


def test_the_list_says_what_keys_made_before_roles_may_do() -> None:
    KeyStore().path.write_text(json.dumps({"keys": [{"name": "old", "tier": "pro", "sha256": "0" * 64, "created": 1}]}))
    assert run("list").stdout.splitlines()[1].split()[:4] == ["00000000", "old", "pro", "admin"]


def test_on_a_full_disk_the_old_keys_stay() -> None:
    run("create", "--name", "old")
    before = KeyStore().path.read_bytes()
    done = command("create", "--name", "new", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10)))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr == f"locallab: cannot write {KeyStore().path}: File too large; the keys stay as they were\n"
    assert KeyStore().path.read_bytes() == before
    assert sorted(path.name for path in KeyStore().path.parent.glob("keys*")) == ["keys.json", "keys.lock"]


def test_a_key_that_could_not_be_printed_is_not_kept() -> None:
    with open("/dev/full", "w") as full:
        done = command("create", "--name", "unseen", stdout=full)
    assert done.returncode == 1 and "No space left on device" in done.stderr
    assert KeyStore().read() == ()


def test_a_fifo_in_place_of_the_file_does_not_hang() -> None:
    os.mkfifo(KeyStore().path)
    done = command("list", stdout=subprocess.PIPE)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "it is not a regular file" in done.stderr


def test_usage() -> None:
    assert run("usage").stdout == "day  id  name  model  requests  prompt  cached  completion\n"
    today, before = first_day(1), first_day(40)
    counted = {Slot(today, "ab12cd34", "m"): Spent("alice", 2, 30, 20, 5), Slot(before, "", "m"): Spent("", 1, 9, 0, 1)}
    UsageFile().add(counted, "")
    assert run("usage").stdout.splitlines()[1].split() == [today, "ab12cd34", "alice", "m", "2", "30", "20", "5"]
    counts = {"requests": 1, "prompt_tokens": 9, "cached_tokens": 0, "completion_tokens": 1}
    assert json.loads(run("usage", "--days", "50", "--json").stdout)[0] == {
        "day": before, "key": "", "model": "m", "name": "", **counts,
    }  # fmt: skip


def test_a_file_of_usage_that_cannot_be_read_is_one_line() -> None:
    UsageFile().path.write_text("no database" * 100)
    done = run("usage")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == f"locallab: {UsageFile().path}: the file of usage cannot be read: file is not a database\n"
