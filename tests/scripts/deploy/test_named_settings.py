"""Every variable and flag that a file of scripts/deploy names is one of LocalLab's, or one of the program it is for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from locallab import settings
from locallab.cli import main
from locallab.cli.settings_options import unknown
from locallab.settings import EngineSettings, ServerSettings
from tests.support.deploy_programs import DEPLOY, REQUIRED
from tests.support.pages import flags

FILES = sorted(path for path in DEPLOY.rglob("*") if path.is_file())

OTHERS = {
    "apt": "--no-install-recommends",
    "caddy": "--config",
    "docker": "--build --build-arg --from --gpus --interval --start-interval --start-period --stop-timeout --timeout",
    "kubectl": "--from-literal",
    "linker": "--allow-shlib-undefined",
    "pip": "--no-cache-dir",
    "redis": "--appendonly --maxmemory --maxmemory-policy",
    "systemd": "--now --pty",
    "useradd": "--home-dir --shell --system --uid --user-group",
}
"""Flags of other programs."""


FLAGS = flags(main)


def named(pattern: str) -> set[str]:
    return {found for path in FILES for found in re.findall(pattern, path.read_text())}


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(DEPLOY)) for path in FILES])
def test_names(path: Path) -> None:
    variables = set(re.findall(r"\bLOCALLAB_[A-Z_]*[A-Z]", path.read_text())) - {REQUIRED}
    assert unknown(dict.fromkeys(variables, ""), ServerSettings, EngineSettings) == []
    others = {flag for each in OTHERS.values() for flag in each.split()}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", path.read_text())) - others <= FLAGS


def test_no_flag_of_another_program_is_left_over() -> None:
    used = named(r"--[a-z][a-z-]*[a-z]")
    assert [flag for each in OTHERS.values() for flag in each.split() if flag not in used] == []


def test_values_in_the_files_are_valid() -> None:
    assigned = [
        found
        for path in FILES
        if path.suffix != ".md"
        for found in re.findall(r"\b(LOCALLAB_[A-Z_]+)[=:] *([^\s\"'\\]+)", path.read_text())
    ]
    fields = {
        settings.variable(name): (cls, name) for cls in (ServerSettings, EngineSettings) for name, _, _ in settings.fields(cls)
    }
    checked = 0
    for name, value in assigned:
        if name in fields:
            cls, field = fields[name]
            settings.resolve(cls, (name, {field: value}))
            checked += 1
    assert checked > 5
