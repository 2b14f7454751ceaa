from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from locallab import __version__, cli, errors

ROOT = Path(__file__).parents[2]
COMMANDS = [
    *("serve", "pull", "list", "ps", "cluster", "rm", "show", "run", "chat"),
    *("fit", "keys", "cache", "import", "bench", "doctor", "version", "completion"),
]


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_help_lists_the_commands(arguments: list[str]) -> None:
    result = CliRunner().invoke(cli.main, arguments)
    assert result.exit_code == 0
    listed = [line.split()[0] for line in result.stdout.partition("Commands:\n")[2].splitlines()]
    assert listed == COMMANDS
    assert "Exit status: 0 when" in result.stdout


def test_version() -> None:
    result = CliRunner().invoke(cli.main, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"locallab {__version__}\n")


@pytest.mark.parametrize(
    "arguments",
    [["bogus"], ["serve", "--bogus"], ["serve", "extra"], ["serve", "--port"], ["serve", "--port", "70000"]],
    ids=" ".join,
)
def test_a_wrong_command_line_is_one_line_and_status_2(arguments: list[str]) -> None:
    result = CliRunner().invoke(cli.main, arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("locallab: ")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.ConfigError("port: 1 is in use"), 2),
        (errors.UnknownModel("x"), 2),
        (errors.SourceError("no\n  network"), 1),
        (errors.ModelLoadError("x.gguf", "truncated"), 1),
        (errors.EngineFailure("-3"), 1),
        (KeyboardInterrupt(), 130),
        (ValueError("of a library"), 1),
        (RuntimeError("of another\nin two lines"), 1),
        (PermissionError(13, "Permission denied", "/some/file"), 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_failure_is_one_line_and_a_status(error: BaseException, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setitem(cli.main.commands, "fail", click.Command("fail", callback=fail))
    result = CliRunner().invoke(cli.main, ["fail"])
    assert result.exit_code == status
    assert result.stderr.lstrip().count("\n") == result.stderr.count("locallab: ") == 1
    expected = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
    assert " ".join(expected.split()) in result.stderr


def test_the_traceback_of_an_unforeseen_error_is_for_those_who_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    line = "locallab: internal error: ZeroDivisionError: integer division or modulo by zero"
    monkeypatch.setitem(cli.main.commands, "fail", click.Command("fail", callback=lambda: 1 // 0))
    told = CliRunner().invoke(cli.main, ["fail"]).stderr
    assert told == f"{line}; LOCALLAB_LOG_LEVEL=debug shows where\n"
    monkeypatch.setenv("LOCALLAB_LOG_LEVEL", "debug")
    told = CliRunner().invoke(cli.main, ["fail"]).stderr
    assert "Traceback" in told and told.endswith(f"\n{line}\n")


def test_the_status_a_command_returns_is_the_exit_status(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cli.main.commands, "end", click.Command("end", callback=lambda: 7))
    assert CliRunner().invoke(cli.main, ["end"]).exit_code == 7


def test_as_a_module() -> None:
    command = [sys.executable, "-m", "locallab", "--version"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"locallab {__version__}\n"


def test_help_imports_nothing_heavy() -> None:
    """A wrong flag must be reported without loading numpy, llama.cpp or the web framework."""
    heavy = {"llama_cpp", "numpy", "starlette", "huggingface_hub", "rich", "httpx", "jinja2"}
    code = f"import sys, locallab.cli; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
