"""The pages of the documentation: links lead somewhere, paths exist, flags are known, tables say what the code says."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys

import click
import pytest

from locallab.cli import main
from tests.layers import ANYWHERE, PARTS
from tests.support.pages import PAGES, ROOT, anchors, blocks, broken_links, code, commands, flags, places, prose

every_page = pytest.mark.parametrize("page", PAGES)

OTHERS = {"--no-repack", "--spec-type", "--write"}
"""Flags in inline code that are neither ours nor those of SCRIPTS: llama.cpp's server's, scripts/cli-reference's."""

SCRIPTS = ("scripts/bench", "scripts/cluster-sim", "scripts/gpu-check", "scripts/soak")


def test_every_page_is_listed() -> None:
    folders = (ROOT / name for name in ("locallab", "scripts", "tests"))
    found = {str(path.relative_to(ROOT)) for folder in folders for path in folder.rglob("README.md")}
    assert found | {"README.md", "CHANGELOG.md"} == set(PAGES)


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 220


def test_the_readme_leads_to_every_page() -> None:
    text = prose("README.md")
    assert [page for page in PAGES if page != "README.md" and f"]({page})" not in text] == []


@every_page
def test_links_lead_somewhere(page: str) -> None:
    assert list(broken_links(page)) == []


@every_page
def test_paths_exist(page: str) -> None:
    assert [place for place in sorted(places(page)) if not (ROOT / place).exists()] == []


@every_page
def test_every_block_has_a_language_and_begins_at_the_margin(page: str) -> None:
    assert [str(block) for block in blocks(page) if not block.language] == []
    assert not re.search(r"^ +```", (ROOT / page).read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def script_flags() -> dict[str, set[str]]:
    commands = {script: [sys.executable, ROOT / script, "--help"] for script in SCRIPTS}
    shown = {script: subprocess.check_output(command, text=True) for script, command in commands.items()}
    return {script: set(re.findall(r"^  (?:-h, )?(--[a-z-]+)", text, re.MULTILINE)) for script, text in shown.items()}


@every_page
def test_commands_and_their_flags_exist(page: str, script_flags: dict[str, set[str]]) -> None:
    for line in commands(page):
        found = re.search(rf"(?:^|[ $])(locallab|{'|'.join(SCRIPTS)}|--[a-z-]+)(?= |$)(.*)", line)
        if found is None:
            continue
        words = shlex.split(found[2])
        used = {word.partition("=")[0] for word in words if word.startswith("--")}
        if found[1] in SCRIPTS:
            assert used <= script_flags[found[1]], line
        elif found[1] == "locallab":
            command: click.Command = main
            while words and isinstance(command, click.Group) and words[0] in command.commands:
                command = command.commands[words.pop(0)]
            assert command is not main or not words or words[0].startswith("--"), line
            assert used <= flags(command), line
        elif line.startswith("--"):
            assert found[1] in flags(main).union(OTHERS, *script_flags.values()), line


def test_the_table_of_imports_is_the_rule() -> None:
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|$", prose("locallab/README.md").partition("## Imports")[2], re.MULTILINE)
    shown = {part: frozenset(re.findall(r"`(\w+)`", cells)) for part, cells in rows}
    listed = {part: allowed for part, allowed in PARTS.items() if part not in ANYWHERE | {"__main__"}}
    assert shown == listed
    text = prose("locallab/README.md")
    assert all(f"`{part}`" in text for part in ANYWHERE - {""})


def test_anchors_are_as_github_makes_them() -> None:
    found = anchors("locallab/server/dialects/README.md")
    assert {"llamacpp", "the-coding-assistant", "errors-and-notes"} <= found


def test_inline_code_is_found() -> None:
    assert "--on-demand keep" in code("locallab/cli/doctor/README.md")
