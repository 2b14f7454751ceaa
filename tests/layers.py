"""Which part of the package may import which, read from the source text. `violations` is what test_layers asserts empty."""

from __future__ import annotations

import ast
import dataclasses
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

ANYWHERE = frozenset(
    {"", "errors", "settings", "placement_settings", "listener_settings", "hardware", "units", "version", "private_files"}
)
"""Parts that every part may import; "" is the package itself."""

PARTS: Mapping[str, frozenset[str]] = {
    "": frozenset({"inprocess"}),  # the names that Python programs use, imported when they are used first
    "errors": frozenset(),
    "settings": frozenset(),
    "placement_settings": frozenset(),
    "listener_settings": frozenset(),
    "hardware": frozenset(),
    "units": frozenset(),
    "version": frozenset(),
    "private_files": frozenset(),
    "memory_model": frozenset(),
    "cache_files": frozenset(),
    "logs": frozenset(),
    "supervision": frozenset(),
    "supervisor": frozenset({"supervision"}),
    "media": frozenset(),
    "engine": frozenset({"memory_model", "cache_files", "media"}),
    "chat": frozenset({"engine", "media"}),
    "models": frozenset(),
    "redis_link": frozenset(),
    "keys": frozenset({"redis_link"}),
    "load": frozenset(),
    "replay": frozenset(),
    "tunnel": frozenset(),
    "fit": frozenset({"models", "memory_model"}),
    "pool": frozenset({"engine", "chat", "models", "fit", "supervision"}),  # chat: a loaded model carries its template
    "server": frozenset(
        {"engine", "chat", "media", "pool", "models", "keys", "replay", "tunnel", "logs", "redis_link", "supervision"}
    ),  # logs: the id of the request at hand
    "inprocess": frozenset(
        {"server", "pool", "models", "engine", "chat", "media", "fit", "keys", "tunnel", "cache_files", "supervision"}
    ),  # the face for Python programs
    "cluster": frozenset(
        {"inprocess", "server", "pool", "models", "engine", "chat", "media", "fit", "keys", "logs", "tunnel", "supervision"}
    ),
    "cli": frozenset(
        {
            "cluster",
            "server",
            "pool",
            "models",
            "engine",
            "logs",
            "keys",
            "load",
            "replay",
            "tunnel",
            "fit",
            "chat",
            "inprocess",
            "cache_files",
            "redis_link",
            "supervision",
            "supervisor",
        }
    ),
    "__main__": frozenset({"cli", "supervisor"}),
}
"""What each part may import of the others, besides ANYWHERE and itself."""

ENGINE_LIBRARIES = frozenset({"llama_cpp", "numpy", "llguidance"})
ENGINE_FORBIDDEN = frozenset({"asyncio", "json", "http", "socket", "urllib"})
ENGINE_EXCEPTIONS = {"locallab.engine.grammar.json_schema": "json"}  # JSON schemas are what it is about
COMMON = frozenset({"__init__", "registry", "dialect", "answer_fields"})
"""Files of `server/dialects` that belong to no dialect."""
NEUTRAL = tuple(
    f"locallab.server.{name}"
    for name in ("inference", "fields", "middleware", "errors", "areas", "streaming", "reply", "endpoint", "roles")
)
HTTP_LIBRARIES = frozenset({"starlette", "uvicorn", "sse_starlette", "httpx", "asyncio", "anyio"})


@dataclasses.dataclass(frozen=True)
class Import:
    """One import of a module; both as dotted names."""

    importer: str
    target: str

    @property
    def part(self) -> str:
        return part(self.importer)


def part(module: str) -> str:
    """The part a module belongs to: `engine` for `locallab.engine.cache`, "" for the package itself."""
    return [*module.split("."), ""][1]


def imports(module: str, source: str, is_package: bool) -> Iterator[Import]:
    """Every import of the module, also inside functions, with relative ones resolved.

    `from locallab import pool` and `from locallab.chat import tools` name submodules: each name is a target of its own.
    """
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (Import(module, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join(filter(None, [*above, node.module]))
            yield from (Import(module, f"{base}.{alias.name}") for alias in node.names)


def named_sources(package: Path) -> dict[str, str]:
    """Return dotted name -> source of every module of the package; a package's own name ends in `.__init__`."""
    files = sorted(package.rglob("*.py"))
    return {".".join((package.name, *file.relative_to(package).with_suffix("").parts)): file.read_text() for file in files}


def edges(modules: Mapping[str, str]) -> set[tuple[str, str]]:
    """Return (importer, imported) for each import of one of `modules` by another, wherever in the file it stands.

    A name taken from a package counts as an import of the package, unless it is a module of it.
    """
    known = {name.removesuffix(".__init__") for name in modules}
    found = set()
    for name, source in modules.items():
        importer = name.removesuffix(".__init__")
        for each in imports(importer, source, name.endswith(".__init__")):
            target = each.target if each.target in known else each.target.rpartition(".")[0]
            if target in known and target != importer:
                found.add((importer, target))
    return found


def circles(found: Iterable[tuple[str, str]]) -> list[list[str]]:
    """Return the groups of modules that import each other, directly or by way of others (strongly connected components)."""
    following: dict[str, set[str]] = {}
    for importer, target in found:
        following.setdefault(importer, set()).add(target)
    reached = {name: _reached(name, following) for name in following}
    groups = {frozenset({name} | {other for other in reached[name] if name in reached.get(other, ())}) for name in following}
    return sorted(sorted(group) for group in groups if len(group) > 1)


def _reached(name: str, following: Mapping[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    todo = [name]
    while todo:
        new = following.get(todo.pop(), set()) - seen
        seen |= new
        todo += new
    return seen


def borrowed(found: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the imports of a test module or a conftest: tests share through tests/support only."""
    return sorted(
        (importer, target) for importer, target in found if target.rpartition(".")[2].startswith(("test_", "conftest"))
    )


def violations(modules: Mapping[str, str]) -> list[str]:
    """What breaks a rule, one line each. `modules`: dotted name -> source; a package's name ends in `.__init__`."""
    found = []
    for name, source in modules.items():
        is_package = name.endswith(".__init__")
        for each in imports(name.removesuffix(".__init__"), source, is_package):
            found += [f"{name} imports {each.target}: {reason}" for reason in _broken(each)]
    return found


def _broken(each: Import) -> Iterator[str]:
    library = each.target.split(".")[0]
    if library == "locallab":
        yield from _broken_inside(each)
        return
    if library == "llama_cpp" and each.part != "engine":
        yield "only engine touches llama_cpp"
    if each.part == "engine" and library not in ENGINE_LIBRARIES and library not in sys.stdlib_module_names:
        yield "engine uses only the standard library, numpy and llama_cpp"
    if each.part == "engine" and library in ENGINE_FORBIDDEN and ENGINE_EXCEPTIONS.get(each.importer) != library:
        yield "engine knows no asyncio, HTTP or JSON"
    if each.part in ("chat", "models", "errors", "settings", "hardware", "keys", "fit") and library in HTTP_LIBRARIES:
        yield f"{each.part} knows no HTTP and no event loop"


def _broken_inside(each: Import) -> Iterator[str]:
    target = part(each.target)
    known = target in PARTS
    if each.part not in PARTS:
        yield f"{each.part!r} is no known part: give it a place in PARTS"
    elif known and target not in PARTS[each.part] | ANYWHERE | {each.part}:
        yield f"{each.part or 'the package'} may not import {target}"
    if each.part == "chat" and target == "engine" and not _is_neutral(each.target):
        yield "chat may use only the engine's request types"
    own, other = _dialect(each.importer), _dialect(each.target)
    if own and other not in ("", own, "openai"):
        yield "a dialect imports no other but openai"
    own, other = _command(each.importer), _command(each.target)
    if own and other and own != other:
        yield "a command imports no other command"
    if each.importer.startswith(NEUTRAL) and each.target.startswith("locallab.server.dialects"):
        yield "what all dialects share knows none of them"


def _is_neutral(target: str) -> bool:
    return target.startswith("locallab.engine.request") or target.split(".")[2:] in (
        [name] for name in ("SamplingParams", "TokenEvent", "Usage", "FinishReason", "Listener")
    )


def _dialect(module: str) -> str:
    """The dialect a module belongs to: `openai` for `locallab.server.dialects.openai.stream`, "" for what is none's."""
    steps = module.split(".")
    return steps[3] if steps[:3] == ["locallab", "server", "dialects"] and len(steps) > 3 and steps[3] not in COMMON else ""


def _command(module: str) -> str:
    steps = module.split(".")
    return steps[3] if steps[:3] == ["locallab", "cli", "commands"] and len(steps) > 3 and steps[3] != "__init__" else ""
