"""Commands where things are missing, closed, full or damaged: a failure is one line that says what would be right."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from locallab import cli
from tests.support.cli_process import ROOT
from tests.support.served_process import Process

OFFLINE = {"HF_ENDPOINT": "http://127.0.0.1:9", "PIP_INDEX_URL": "http://127.0.0.1:9", "PIP_RETRIES": "0"}
NEAR, AFAR = ["ps", "--url", "http://127.0.0.1:9"], ["ps", "--url", "http://192.0.2.1:8000"]
PROXIES = ("ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy")
COMMANDS = [
    ["list"],
    ["show", "smollm2:135m"],
    ["fit", "smollm2:135m"],
    ["keys", "list"],
    ["keys", "create", "--name", "a"],
    ["cache", "ls", "--cache-disk", "auto"],
    ["import"],
    ["rm", "--yes", "smollm2:135m"],
    ["pull", "smollm2:135m"],
    NEAR,
    ["run", "--url", "http://127.0.0.1:9", "Say one word."],
]


def invoke(monkeypatch: pytest.MonkeyPatch, arguments: list[str], **environ: str | Path) -> Result:
    for name, value in {**OFFLINE, **environ}.items():
        monkeypatch.setenv(name, str(value))
    return CliRunner().invoke(cli.main, arguments, input="")


def in_one_line(result: Result) -> None:
    """Check that a command worked, or said why not in one line without a word about Python."""
    assert "Traceback" not in result.output and "internal error" not in result.output, result.output
    told = [line for line in result.stderr.splitlines() if " info locallab." not in line]
    assert not result.exit_code or (len(told) == 1 and told[0].startswith("locallab: ")), result.stderr


def no_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unknown(uid: int) -> pwd.struct_passwd:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "LOCALLAB_HOME", "LOCALLAB_CONFIG", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def home_is_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LOCALLAB_HOME", str(tmp_path / "file"))
    monkeypatch.setenv("LOCALLAB_CONFIG", str(tmp_path / "file"))


def home_is_below_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LOCALLAB_HOME", str(tmp_path / "file" / "below"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "below"))


def nothing_can_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LOCALLAB_HOME", "/proc/locallab")
    monkeypatch.setenv("LOCALLAB_CONFIG", "/proc/locallab")


def damaged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    home, config = Path(os.environ["LOCALLAB_HOME"]), Path(os.environ["LOCALLAB_CONFIG"])
    (home / "keys.json").write_bytes(b"\xff\x00{")
    (home / "models").write_bytes(b"no folder")
    (config / "models.yaml").write_bytes(b"\xff\xfe\x00models: [")


def a_registry_that_is_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (Path(os.environ["LOCALLAB_CONFIG"]) / "models.yaml").mkdir()


@pytest.mark.parametrize(
    "harm", [no_home, home_is_a_file, home_is_below_a_file, nothing_can_be_written, damaged, a_registry_that_is_a_folder]
)
@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_a_failure_is_one_line(
    harm: Callable[[pytest.MonkeyPatch, Path], None], arguments: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    harm(monkeypatch, tmp_path)
    in_one_line(invoke(monkeypatch, arguments))
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize("proxy", ["socks://127.0.0.1:9/", "socks5://127.0.0.1:9", "127.0.0.1:9"])
@pytest.mark.parametrize("arguments", [["list"], ["pull", "smollm2:135m"], NEAR, AFAR], ids=" ".join)
def test_a_proxy_that_cannot_be_used(proxy: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    result = invoke(monkeypatch, arguments, **dict.fromkeys(PROXIES, proxy))
    in_one_line(result)
    if arguments == AFAR and proxy.startswith("socks"):
        assert f"ALL_PROXY={proxy}" in result.stderr


def test_without_a_home_the_message_names_the_setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    no_home(monkeypatch, tmp_path)
    expected = (
        "locallab: LOCALLAB_HOME: there is no home directory to choose a folder in; set HOME, or LOCALLAB_HOME to a folder\n"
    )
    assert invoke(monkeypatch, ["keys", "list"]).stderr == expected


def process(
    *arguments: str | bytes, stdin: bytes = b"", stdout: int = subprocess.PIPE, **environ: str
) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "locallab", *arguments]
    environment = {**os.environ, **OFFLINE, **environ}
    return subprocess.run(command, cwd=ROOT, env=environment, input=stdin, stdout=stdout, stderr=subprocess.PIPE, timeout=60)


def test_a_proxy_that_the_hubs_client_cannot_use() -> None:
    done = process("pull", "hf:owner/repo:Q4_K_M", **dict.fromkeys(PROXIES, "socks5://127.0.0.1:9"))
    assert done.returncode == 1 and done.stderr.count(b"\n") == 1, done.stderr
    assert b"SOCKS" in done.stderr and b"check the network, its proxy" in done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_output_that_the_terminal_cannot_show(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "models.yaml").write_text(
        "models:\n  - {id: mine, description: naïve ☃ \U0001f600, source: {kind: file, path: x.gguf}}\n", encoding="utf-8"
    )
    done = process("show", "mine", PYTHONIOENCODING=encoding, LC_ALL="C", LOCALLAB_CONFIG=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert b"na" in done.stdout


def test_text_that_is_no_utf8_is_taken(live: Process) -> None:
    for locale in ("C.UTF-8", "C", "POSIX"):
        done = process(
            "run", "--url", live.url, "--max-tokens", "2", b"say caf\xe9", stdin=b"caf\xe9 \x96 notes", LC_ALL=locale
        )
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout


def test_a_full_disk_is_one_line() -> None:
    with open("/dev/full", "wb") as full:
        done = process("list", stdout=full.fileno())
    assert done.returncode == 1
    assert done.stderr.startswith(b"locallab: ") and done.stderr.count(b"\n") == 1 and b"No space left" in done.stderr


def test_a_reader_that_leaves_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = process("list", stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")
