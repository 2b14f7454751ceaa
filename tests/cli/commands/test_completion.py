from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from locallab import cli
from tests.support.terminal import ROOT

ENDINGS = {
    "bash": "complete -o nosort -F _locallab_completion locallab",
    "zsh": "compdef _locallab_completion",
    "fish": "complete --no-files",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder for PATH with `locallab`."""
    script = tmp_path / "locallab"
    script.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m locallab "$@"\n')
    script.chmod(0o755)
    return tmp_path


def bash(folder: Path, line: str) -> list[str]:
    """Return bash's completions of `line`, which it splits at colons."""
    code = f"""
        eval "$(locallab completion bash)"
        COMP_WORDBREAKS=$' \\t\\n"><=;|&(:' COMP_LINE={line!r} COMP_POINT={len(line)}
        compopt() {{ echo files; }}
        _locallab_completion locallab
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    environ = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", code], env=environ, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_commands_options_and_models_with_colons(folder: Path) -> None:
    assert bash(folder, "locallab pu") == ["pull"]
    assert bash(folder, "locallab run --ma") == ["--max-tokens"]
    assert "smollm2:135m" in bash(folder, "locallab show smol")
    assert bash(folder, "locallab chat smollm2:1") == ["135m", "1.7b"]
    assert bash(folder, "locallab run smollm2:135m --task au") == ["audit"]
    assert bash(folder, "locallab serve --model smollm2:13") == ["135m"]
    assert bash(folder, "locallab run ./mod") == ["files"]


@pytest.mark.parametrize("shell", ENDINGS)
def test_scripts(shell: str) -> None:
    done = CliRunner().invoke(cli.main, ["completion", shell])
    assert done.exit_code == 0
    assert ENDINGS[shell] in done.stdout


@pytest.mark.parametrize(("shell", "word"), [("zsh", "2"), ("fish", "smollm2:13")])
def test_models_in_the_other_shells(shell: str, word: str) -> None:
    environ = {"COMP_WORDS": "locallab show smollm2:13", "COMP_CWORD": word, "_LOCALLAB_COMPLETE": f"{shell}_complete"}
    done = CliRunner().invoke(cli.main, [], env=environ, prog_name="locallab")
    assert "135m" in done.stdout and "SmolLM2 135M Instruct" in done.stdout


def test_a_broken_registry_is_not_reported_by_completion(tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("models: 1")
    environ = {"COMP_WORDS": "locallab show smol", "COMP_CWORD": "2", "_LOCALLAB_COMPLETE": "zsh_complete"}
    done = CliRunner().invoke(cli.main, [], env={**environ, "LOCALLAB_REGISTRY": str(broken)}, prog_name="locallab")
    assert done.output == "file\nsmol\n_\n"


def test_an_unknown_shell() -> None:
    done = CliRunner().invoke(cli.main, ["completion", "csh"])
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
