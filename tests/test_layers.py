from __future__ import annotations

from pathlib import Path

import pytest

from tests.layers import borrowed, circles, edges, named_sources, violations

PACKAGE = Path(__file__).parents[1] / "locallab"
LINES = 400
LONGER: dict[str, str] = {}
"""Files that may have more than LINES lines, each with its reason."""


def test_every_import_goes_down() -> None:
    found = named_sources(PACKAGE)
    assert "locallab.engine.scheduler" in found and "locallab.server.__init__" in found
    assert violations(found) == []


def test_no_file_is_too_long() -> None:
    lengths = {str(file.relative_to(PACKAGE)): len(file.read_text().splitlines()) for file in PACKAGE.rglob("*.py")}
    assert {name: length for name, length in lengths.items() if length > LINES and name not in LONGER} == {}
    assert {name for name in LONGER if lengths.get(name, 0) <= LINES} == set(), "no longer long: take it off the list"


def test_no_module_imports_itself_by_way_of_others() -> None:
    assert circles(edges(named_sources(PACKAGE))) == []


CIRCLES = {
    "two modules": {"p.a": "from p.b import x", "p.b": "from p import a"},
    "inside a function": {"p.a": "from p import b", "p.b": "def f():\n    from p.a import x"},
    "by way of a third": {"p.a": "import p.b", "p.b": "import p.c", "p.c": "import p.a"},
    "through a package": {"p.__init__": "from p.a import x", "p.a": "from p import y"},
    "for types only": {"p.a": "from p import b", "p.b": "if TYPE_CHECKING:\n    from p.a import T"},
}


@pytest.mark.parametrize("modules", CIRCLES.values(), ids=CIRCLES)
def test_a_circle_is_found(modules: dict[str, str]) -> None:
    assert len(circles(edges(modules))) == 1
    assert circles(edges({name: source for name, source in modules.items() if name != "p.a"})) == []


ALLOWED = {
    "downwards": ("locallab.server.app", "from locallab.pool import Pool\nfrom locallab import chat"),
    "errors from anywhere": ("locallab.engine.cache", "from locallab import errors, hardware, settings"),
    "own part": ("locallab.engine.cache", "from . import request\nfrom locallab.engine.text import TextStream"),
    "native in engine": ("locallab.engine.llama", "import ctypes\nimport llama_cpp.llama_cpp as native\nimport numpy as np"),
    "request types in chat": ("locallab.chat.tools", "from locallab.engine.request import TokenEvent"),
    "request types in chat by the short way": ("locallab.chat.tools", "from locallab.engine import TokenEvent"),
    "dialect uses server": (
        "locallab.server.dialects.ollama.routes",
        "from locallab.server.dialects.dialect import Dialect\nfrom ...errors import report",
    ),
    "dialect uses its own": ("locallab.server.dialects.ollama.routes", "from .stream import OllamaFormatter"),
    "any dialect uses openai": (
        "locallab.server.dialects.ollama.routes",
        "from locallab.server.dialects.openai import logprobs",
    ),
    "registry of dialects": ("locallab.server.dialects.registry", "from locallab.server.dialects.ollama.routes import OLLAMA"),
    "command uses helpers": ("locallab.cli.commands.chat", "from locallab.cli.terminal.conversation import Talk"),
    "pool loads models": ("locallab.pool", "from locallab.models.store import Store"),
}

FORBIDDEN = {
    "upwards": ("locallab.engine.worker", "from locallab.pool import Pool"),
    "upwards by the package": ("locallab.engine.worker", "from locallab import server"),
    "upwards, relative": ("locallab.engine.worker", "from ..chat import messages"),
    "upwards, plain import": ("locallab.pool", "import locallab.server.app"),
    "upwards, inside a function": ("locallab.pool", "def load():\n    from locallab.cli import main"),
    "models from engine": ("locallab.engine.engine", "from locallab.models import Store"),
    "models from chat": ("locallab.chat.templates", "from locallab.models.registry import ModelSpec"),
    "native outside": ("locallab.server.app", "import llama_cpp"),
    "native outside, submodule": ("locallab.pool", "from llama_cpp.llama_cpp import llama_decode"),
    "event loop in engine": ("locallab.engine.worker", "import asyncio"),
    "JSON in engine": ("locallab.engine.request", "from json import dumps"),
    "HTTP in engine": ("locallab.engine.engine", "import http.client"),
    "library in engine": ("locallab.engine.engine", "import msgspec"),
    "HTTP in chat": ("locallab.chat.messages", "from starlette.requests import Request"),
    "engine proper in chat": ("locallab.chat.messages", "from locallab.engine.worker import Worker"),
    "engine proper in chat by the short way": ("locallab.chat.messages", "from locallab.engine import Engine"),
    "server in chat": ("locallab.chat.messages", "from locallab.server import errors"),
    "dialect imports dialect": ("locallab.server.dialects.openai.routes", "from locallab.server.dialects import ollama"),
    "dialect imports dialect's class": (
        "locallab.server.dialects.openai.routes",
        "from locallab.server.dialects.ollama.stream import OllamaFormatter",
    ),
    "dialect imports dialect, relative": (
        "locallab.server.dialects.openai.routes",
        "from ..ollama.stream import OllamaFormatter",
    ),
    "dialect imports dialect, in a function": (
        "locallab.server.dialects.anthropic.routes",
        "def f():\n    from locallab.server.dialects.responses import items",
    ),
    "inference knows a dialect": ("locallab.server.inference.reader", "from locallab.server.dialects.openai import stream"),
    "fields know a dialect": ("locallab.server.fields.body", "from locallab.server.dialects.dialect import Dialect"),
    "middleware knows the registry": ("locallab.server.middleware.paths", "from locallab.server.dialects import registry"),
    "errors know a dialect": ("locallab.server.errors", "from locallab.server.dialects.openai.errors import openai_body"),
    "command imports command": ("locallab.cli.commands.chat", "from locallab.cli.commands import run"),
    "command imports command's function": ("locallab.cli.commands.chat", "from locallab.cli.commands.run import command"),
    "errors import a part": ("locallab.errors", "from locallab import pool"),
    "a part without a place": ("locallab.utils", "from locallab import errors"),
}


@pytest.mark.parametrize(("module", "source"), ALLOWED.values(), ids=ALLOWED)
def test_allowed(module: str, source: str) -> None:
    assert violations({module: source}) == []


@pytest.mark.parametrize(("module", "source"), FORBIDDEN.values(), ids=FORBIDDEN)
def test_forbidden(module: str, source: str) -> None:
    assert len(violations({module: source})) == 1


def test_tests_share_through_support_only() -> None:
    assert borrowed(edges(named_sources(Path(__file__).parent))) == []


@pytest.mark.parametrize(
    "source", ["from tests.test_b import helper", "from tests import conftest", "def f():\n    import tests.test_b"]
)
def test_what_a_test_borrows_of_another_is_found(source: str) -> None:
    modules = {"tests.test_a": source, "tests.test_b": "", "tests.conftest": "", "tests.support.c": ""}
    assert len(borrowed(edges(modules))) == 1
    assert borrowed(edges({**modules, "tests.test_a": "from tests.support.c import helper"})) == []
