from __future__ import annotations

import datetime
import json
import os
from array import array
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from locallab import cache_files, cli
from tests.support.terminal import terminal

HEADING = "model  owner  prefixes  tokens  size  last used\n"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, ["cache", *arguments])


def keep(directory: Path, model: str, owner: str, tokens: list[int], start: int, used: int) -> int:
    """Put a file of 1,000 bytes of state into the cache, used at this time; return its size."""
    facts, ids = cache_files.fingerprint(model, kv_type="f16"), memoryview(array("i", tokens))
    folder = directory / cache_files.folder_name(facts, owner)
    cache_files.make_folder(folder, facts, owner)
    path = folder / cache_files.file_name(ids, start, rows=False, fixed=True)
    size = cache_files.write(path, ids, start, None, memoryview(bytes(1000)))
    os.utime(path, (used, used))
    return size


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory that LOCALLAB_CACHE_DISK names; the user's own is another one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    monkeypatch.setenv("LOCALLAB_CACHE_DISK", str(tmp_path / "prefixes"))
    (tmp_path / "prefixes").mkdir()
    return tmp_path / "prefixes"


def test_nothing_is_there() -> None:
    assert run("ls").output == HEADING
    assert run("ls", "--json").output == "[]\n"


def test_list(directory: Path) -> None:
    sizes = [keep(directory, "a", "", [1] * 1500, 0, 10**9), keep(directory, "a", "", [1] * 2000, 1500, 10**9 + 60)]
    other = keep(directory, "b", "ann", [1, 2], 0, 10**9 + 120)
    time, later = (datetime.datetime.fromtimestamp(10**9 + n).strftime("%Y-%m-%d %H:%M") for n in (60, 120))
    assert run("ls").output.splitlines() == [
        "model  owner  prefixes  tokens  size     last used",
        f"b      ann    1         2       1.27 kB  {later}".replace("1.27", f"{other / 1000:.3g}"),
        f"a      -      2         2,000   {sum(sizes) / 1000:.3g} kB  {time}",
    ]
    listed = json.loads(run("ls", "--json").output)
    assert listed[1] == {
        "model": "a",
        "owner": "",
        "prefixes": 2,
        "tokens": 2000,
        "size": sum(sizes),
        "last_used": 10**9 + 60,
        "depends_on": {"model": "a", "kv_type": "f16"},
    }


def test_a_folder_that_nothing_describes_is_listed(directory: Path) -> None:
    keep(directory, "a", "", [1], 0, 0)
    next(directory.rglob(cache_files.ABOUT)).unlink()
    assert json.loads(run("ls", "--json").output)[0]["model"] == "?"


def test_the_flag_goes_before_the_environment(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    keep(tmp_path / "other", "a", "", [1], 0, 0)
    keep(tmp_path / "own" / "locallab" / "prefixes", "b", "", [1], 0, 0)
    for name, model in ((str(tmp_path / "other"), "a"), ("auto", "b")):
        assert json.loads(run("ls", "--json", "--cache-disk", name).output)[0]["model"] == model


def test_clear(directory: Path) -> None:
    size = keep(directory, "a", "", [1], 0, 0) + keep(directory, "b", "", [1], 0, 0)
    (directory / "notes").touch()
    done = run("clear", "--yes")
    assert (done.exit_code, done.output) == (0, f"removed all prefixes in {directory}: {size:,} bytes freed\n")
    assert [path.name for path in directory.rglob("*")] == ["notes"]
    assert run("clear", "-y").output == f"removed all prefixes in {directory}: 0 bytes freed\n"


def test_clear_asks(directory: Path) -> None:
    keep(directory, "a", "", [1], 0, 0)
    for answer, status, text in (("n", 1, "nothing was removed"), ("y", 0, "bytes freed")):
        assert len(list(cache_files.entries(directory))) == 1
        with terminal("cache", "clear") as shown:
            shown.expect("Remove all prefixes in")
            shown.type(f"{answer}\r")
            shown.expect(text)
            assert shown.end() == status
    assert list(cache_files.entries(directory)) == []


@pytest.mark.parametrize(
    ("arguments", "status", "reason"),
    [
        (["clear"], 2, "cannot ask for confirmation without a terminal: pass --yes"),
        (["clear", "--yes", "--cache-disk", "nowhere"], 2, "--cache-disk: there is no directory nowhere"),
        (["ls", "--cache-disk", "setup.cfg"], 2, "--cache-disk: there is no directory setup.cfg"),
        (["ls", "--cache-disk", ""], 2, "--cache-disk: cache_disk: Expected `str` of length >= 1"),
    ],
)
def test_what_cannot_be_done_is_one_line(directory: Path, arguments: list[str], status: int, reason: str) -> None:
    keep(directory, "a", "", [1], 0, 0)
    done = run(*arguments)
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (status, "", 1)
    assert reason in done.stderr
    assert len(list(cache_files.entries(directory))) == 1


def test_files_that_cannot_be_removed(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(directory: Path) -> None:
        raise PermissionError(13, "Permission denied", "x.prefix")

    monkeypatch.setattr(cache_files, "clear", refuse)
    done = run("clear", "--yes")
    assert (done.exit_code, done.stderr) == (1, "locallab: x.prefix: cannot be removed: Permission denied\n")
