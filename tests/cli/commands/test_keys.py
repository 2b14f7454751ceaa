from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from locallab import cli
from locallab.keys import Keyring, KeyStore
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
    assert created == {"id": key.id, "name": "alice", "tier": "free", "created": key.created}
    assert time.time() - 60 < key.created <= time.time()


def test_list_never_shows_a_key() -> None:
    assert run("list").stdout == "id  name  tier  created\n"
    assert run("list", "--json").stdout == "[]\n"
    secrets = [
        run("create", "--name", name, "--tier", tier).stdout.strip() for name, tier in [("alice b", "free"), ("c", "pro")]
    ]
    first, second = KeyStore().read()
    shown = run("list")
    lines = shown.stdout.splitlines()
    assert lines[1].startswith(f"{first.id}  alice b  free  20") and lines[2].startswith(f"{second.id}  c        pro   20")
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
        (["create", "--name", "there"], "there is a key 'there' already"),
        (["revoke", "nobody"], "there is no key 'nobody'; known: 'there'"),
    ],
    ids=["no name", "empty name", "tier", "twice", "unknown"],
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
