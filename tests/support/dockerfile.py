"""Dockerfiles, read as `docker build` reads them: stages, flags, continued lines. What ours do not use is refused."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path

KNOWN = frozenset(
    {"FROM", "RUN", "COPY", "ARG", "ENV", "WORKDIR", "USER", "VOLUME", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD"}
)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction: its flags by name, and the rest of it as words (of a JSON array, or by blanks) and as text."""

    name: str
    flags: Mapping[str, str]
    text: str

    @property
    def is_exec(self) -> bool:
        """Whether it is in exec form, a JSON array: no shell is between the system and the program."""
        return self.text.startswith("[")

    @property
    def words(self) -> list[str]:
        return [str(each) for each in json.loads(self.text)] if self.is_exec else shlex.split(self.text)


@dataclasses.dataclass(frozen=True)
class Stage:
    base: str
    name: str
    instructions: tuple[Instruction, ...]

    def all(self, name: str) -> list[Instruction]:
        return [each for each in self.instructions if each.name == name]

    def last(self, name: str) -> Instruction:
        """Return the last instruction of the name, the one that holds."""
        return self.all(name)[-1]


def parse(text: str) -> list[Stage]:
    """Return the stages. Raises ValueError for an instruction that is not in KNOWN, or that is in no stage."""
    stages: list[Stage] = []
    for instruction in map(_instruction, _lines(text)):
        if instruction.name == "FROM":
            base, _, name = re.fullmatch(r"(\S+)(\s+AS\s+(\S+))?", instruction.text, re.IGNORECASE).groups()  # type: ignore[union-attr]
            stages.append(Stage(base, name or str(len(stages)), ()))
        elif not stages:
            raise ValueError(f"{instruction.name} is in no stage")
        else:
            stages[-1] = dataclasses.replace(stages[-1], instructions=(*stages[-1].instructions, instruction))
    return stages


def _lines(text: str) -> list[str]:
    """Return the instructions, each in one line. A comment is a whole line; it does not end a continued one."""
    kept = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return re.sub(r"\\[ \t]*\n", "", "\n".join(kept)).splitlines()


def _instruction(line: str) -> Instruction:
    name, _, rest = line.strip().partition(" ")
    if name.upper() not in KNOWN:
        raise ValueError(f"unknown instruction: {line}")
    flags = {}
    while found := re.match(r"\s*--([a-z-]+)=(\S+)\s*", rest):
        flags[found[1]] = found[2]
        rest = rest[found.end() :]
    return Instruction(name.upper(), flags, rest.strip())


def assignments(instruction: Instruction) -> dict[str, str | None]:
    """Return the variables that an ARG or ENV sets; None: an ARG without a default."""
    pairs = (word.partition("=") for word in instruction.words)
    return {name: value if equals else None for name, equals, value in pairs}


def context(folder: Path, patterns: list[str]) -> list[Path]:
    """Return the files of a build's context, relative to `folder`, given the lines of its .dockerignore."""
    rules = [line.strip() for line in patterns if line.strip() and not line.startswith("#")]
    return [path for each in _walk(folder, rules) if not _ignored(path := each.relative_to(folder), rules)]


def _walk(folder: Path, rules: list[str]) -> list[Path]:
    """Return the files below what a rule takes back in; all others begin in what `*` leaves out."""
    assert rules[0] == "*", "the context is what the rules name"
    tops = [folder / rule[1:] for rule in rules if rule.startswith("!")]
    return [path for top in tops for path in ([top] if top.is_file() else sorted(top.rglob("*"))) if path.is_file()]


def _ignored(path: Path, rules: list[str]) -> bool:
    """Apply the rules in order: the last one that matches the path, or a folder that it is in, decides."""
    ignored = False
    for rule in rules:
        pattern = rule.removeprefix("!")
        names = [str(each) for each in (path, *path.parents[:-1])]
        if pattern.startswith("**/"):
            names = list(path.parts)
            pattern = pattern[3:]
        if any(fnmatch.fnmatchcase(each, pattern) for each in names):
            ignored = not rule.startswith("!")
    return ignored
