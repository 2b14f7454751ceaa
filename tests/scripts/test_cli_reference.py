from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click

from locallab.cli import main

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "locallab" / "cli" / "README.md").read_text()


def generated() -> str:
    command = [sys.executable, str(ROOT / "scripts" / "cli-reference")]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_page_has_it_as_it_is() -> None:
    assert generated() == PAGE, "run scripts/cli-reference --write"


def test_it_has_every_command_and_option() -> None:
    text = PAGE.partition("<!-- cli -->")[2]
    for name, command in main.commands.items():
        section = text.partition(f"### `locallab {name}")[2].partition("### `locallab ")[0]
        assert section
        listed = [opt for param in command.params if name != "serve" for opt in param.opts if opt.startswith("--")]
        shown = set(re.findall(r"--[a-z-]+", "".join(re.findall(r"^\| `.*?` \|", section, re.MULTILINE))))
        assert set(listed) == shown - {"--no-" + opt[2:] for opt in listed} - of_subcommands(command)


def of_subcommands(command: click.Command) -> set[str]:
    commands = command.commands.values() if isinstance(command, click.Group) else ()
    return {opt for each in commands for param in each.params for opt in param.opts}
