"""The pages of the documentation: their examples, their links, and the paths they name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click

from tests.support.document_examples import Example, examples

ROOT = Path(__file__).parents[2]
PAGES = (
    *(
        "README.md",
        "locallab/README.md",
        "locallab/cli/README.md",
        "locallab/cli/doctor/README.md",
        "locallab/cluster/README.md",
    ),
    *("locallab/server/dialects/README.md", "locallab/server/fields/README.md", "locallab/server/page/README.md"),
    *("scripts/README.md", "scripts/deploy/README.md", "tests/README.md", "CHANGELOG.md"),
)
SHELL = ("sh", "bash", "console")

FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
PLACE = re.compile(r"(?:locallab|scripts|tests|\.ci)/[\w./-]*")


def blocks(page: str) -> list[Example]:
    return list(examples(ROOT / page))


def prose(page: str) -> str:
    """Return the text of a page without its fenced blocks."""
    return FENCED.sub("", (ROOT / page).read_text())


def code(page: str) -> list[str]:
    """Return the pieces of inline code."""
    return CODE.findall(prose(page))


def anchors(page: str) -> set[str]:
    """Return the anchors of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    names = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
    return {f"{name}-{names[:at].count(name)}" if name in names[:at] else name for at, name in enumerate(names)}


def broken_links(page: str) -> Iterator[str]:
    """Yield the relative links whose file or anchor does not exist."""
    for link in LINK.findall(CODE.sub("", prose(page))):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        if not target.exists():
            yield f"{link}: no such file"
        elif anchor and anchor not in anchors(str(target.relative_to(ROOT))):
            yield f"{link}: no such heading"


def flags(command: click.Command) -> set[str]:
    """Return the flags of a command and of those below it."""
    inside = command.commands.values() if isinstance(command, click.Group) else ()
    own = {opt for param in command.params for opt in (*param.opts, *param.secondary_opts)}
    return own.union({"--help"}, *map(flags, inside))


def places(page: str) -> set[str]:
    """Return the paths of the project that the page names in code."""
    words = [word for block in blocks(page) if block.language in SHELL for word in block.text.split()]
    return {word for word in (*code(page), *words) if PLACE.fullmatch(word)}


def commands(page: str) -> Iterator[str]:
    """Yield the shell commands of the fenced blocks, one line each, and those in inline code."""
    for block in blocks(page):
        if block.language in SHELL:
            yield from re.split(r"\n| && | \| ", block.text.replace("\\\n", " "))
    yield from code(page)
