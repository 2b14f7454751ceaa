"""Flags of scripts/bench: read, checked, and turned into the servers under test."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from benchlib import rivals
from benchlib.goals import OTHER_ROWS, ROWS
from benchlib.prompts import WORKLOADS
from benchlib.results import Results
from benchlib.servers import COMMANDS, PLACEHOLDERS, Server, chat_flags, expand, fill

VARIANT = (
    "launch another server, or one of the above with other flags; in COMMAND "
    + ", ".join(f"{{{name}}}" for name in COMMANDS)
    + " stand for the usual commands, {context_total} for the tokens of KV memory, {scratch} for a directory "
    "that the run keeps and then removes; may be repeated. Usual: " + "; ".join(COMMANDS.values())
)


def parse(argv: list[str], description: str) -> argparse.Namespace:
    """Reads the flags; a wrong one ends the script with exit code 2 and a message that names it.

    Besides the flags the result has `commands`, how each server is reached, by its name; and `results`, which continue those
    of --json or are those of --report.
    """
    parser = _parser(description)
    args = parser.parse_args(argv)
    args.rounds = args.rounds or (1 if args.quick else 3)
    args.clients = args.clients or ([2] if args.quick else [1, 8, 32])
    args.workloads = args.workloads or [
        name
        for name in WORKLOADS
        if not (args.url and _needs_launch(name)) and (args.mmproj or args.rows or not WORKLOADS[name].picture)
    ]
    try:
        _check(args)
        args.results = _results(args)
        args.commands = {} if args.report else _commands(args)
    except ValueError as error:
        parser.error(str(error))
    args.reference = args.reference or next(iter(args.commands), None)
    if not args.report and args.reference not in args.commands:
        parser.error(f"--reference {args.reference}: no such server; given: {', '.join(args.commands)}")
    return args


def rows(args: argparse.Namespace, model: Path | None) -> list[tuple[str, int]]:
    """The rows to measure with `model`, as workload and clients."""
    if not args.rows:
        return [(name, count) for name in args.workloads for count in WORKLOADS[name].clients or args.clients]
    own = ROWS if model in (None, args.model[0]) else OTHER_ROWS
    wanted = [row for row in own if row[0] in args.workloads and (args.mmproj or not WORKLOADS[row[0]].picture)]
    if args.rows == "all":
        return wanted
    missing = [row for row in wanted if not args.results.complete((_stem(model), *row), args.rounds)]
    return [row for row in wanted if row in missing or any((WORKLOADS[name].after, n) == row for name, n in missing)]


def _stem(model: Path | None) -> str:
    return model.stem if model else ""


def _parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench", description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    more = "the .gguf that launched servers load; each further one with the rows " + ", ".join(
        f"{w}:{n}" for w, n in OTHER_ROWS
    )
    add("--model", type=Path, action="append", default=[], metavar="FILE", help=more)
    add("--mmproj", type=Path, metavar="FILE", help="the projector of the first --model; without one, no rows with pictures")
    add("--llama-server", metavar="PATH", help="launch llama.cpp's C++ server, this binary, with the best flags for each row")
    add("--locallab", action="store_true", help="launch LocalLab")
    add("--llama-cpp-python", action="store_true", help="launch python -m llama_cpp.server")
    add("--python", default=sys.executable, metavar="PATH", help="Python for --llama-cpp-python; default: this one")
    add("--variant", type=_named, action="append", default=[], metavar="NAME=COMMAND", help=VARIANT)
    add("--tune", action="store_true", help="launch the C++ server once with each set of flags that is worth trying")
    add("--url", type=_named, action="append", default=[], metavar="NAME=URL", help="a running server; may be repeated")
    add("--api-key", metavar="KEY", help="sent to the servers of --url")
    add("--reference", metavar="NAME", help="the server that counts as 1.00; default: llama-server, else the first")
    add(
        "--rows",
        choices=("all", "missing"),
        help="the rows of the README's table, with numbers of clients of their own, by LocalLab and the C++ server; "
        "missing: those that --json lacks",
    )
    add("--workloads", type=_names, metavar="LIST", help=f"default: {','.join(WORKLOADS)}; with --url those without a start")
    add("--clients", type=_counts, metavar="LIST", help="default: 1,8,32; long has 5 of its own, cold, restart and start 1")
    add(
        "--requests",
        type=count,
        metavar="N",
        help="of each client (of turns: conversations); default: 1 to 3",
    )
    add("--rounds", type=count, metavar="N", help="default: 3; fewer say little")
    add("--threads", type=count, default=os.cpu_count() or 1, metavar="N", help="of launched servers; default: %(default)s")
    add("--seed", type=int, default=0, metavar="N", help="another gives other prompts: for servers warm from an earlier run")
    add("--timeout", type=positive, default=600.0, metavar="SECONDS", help="for one answer; default: %(default)g")
    add("--exclusive", action="store_true", help="start each launched server for its turn alone, when memory is short")
    add("--quick", action="store_true", help="1 round, 1 request a client, a quarter of the texts and answers; 2 clients")
    add("--json", type=Path, metavar="FILE", help="write every sample here, at once; rows that are there already are replaced")
    add("--report", type=Path, metavar="FILE", help="measure nothing: print the table of a file that --json has written")
    add("--figure", type=Path, metavar="FILE", help="with --report: write the figure here, as SVG")
    add("--page", type=Path, metavar="FILE", help="with --report: put the table between the markers of this page")
    return parser


def _check(args: argparse.Namespace) -> None:
    if (args.figure or args.page) and not args.report:
        raise ValueError(f"{'--figure' if args.figure else '--page'}: needs --report FILE, what to draw or write")
    if args.report:
        return
    if args.rows:
        args.locallab = True
        if not args.llama_server:
            raise ValueError("--rows: needs --llama-server PATH, which the rows compare with")
    if args.rows == "missing" and not args.json:
        raise ValueError("--rows missing: needs --json FILE, the rows that there are")
    if args.tune and not args.llama_server:
        raise ValueError("--tune: needs --llama-server PATH")
    launched = args.locallab or args.llama_server or args.llama_cpp_python or args.variant
    if not launched and not args.url:
        raise ValueError("no server given: use --llama-server, --locallab, --llama-cpp-python, --variant or --url")
    if launched and not args.model:
        raise ValueError("--model: a .gguf file is needed to launch servers")
    for model in args.model:
        if not model.is_file():
            raise ValueError(f"--model: no such file: {model}")
    if args.mmproj and not args.mmproj.is_file():
        raise ValueError(f"--mmproj: no such file: {args.mmproj}")
    if args.json and not args.json.parent.is_dir():
        raise ValueError(f"--json: no such directory: {args.json.parent}")
    if args.url and any(_needs_launch(name) for name in args.workloads):
        raise ValueError("--workloads: restart and start need servers that this script launches, not --url")


def _needs_launch(workload: str) -> bool:
    return WORKLOADS[workload].restart or WORKLOADS[workload].start


def _results(args: argparse.Namespace) -> Results:
    path = args.report or args.json
    if args.report and not path.is_file():
        raise ValueError(f"--report: no such file: {path}")
    return Results.read(path) if path and path.is_file() else Results(path)


def _commands(args: argparse.Namespace) -> dict[str, str]:
    commands = {name: expand(f"{{{name}}}") for name in COMMANDS if getattr(args, name.replace("-", "_"))}
    if args.tune:
        del commands["llama-server"]
        commands |= {name: expand("{llama-server}").replace("{best}", how) for name, how in rivals.TRIED.items()}
    variants = {name: expand(command) for name, command in args.variant}
    if len(variants) < len(args.variant):
        raise ValueError("--variant: each needs a name of its own")
    for name, command in variants.items():
        check_command("--variant", command)
        if "{binary}" in command and not args.llama_server:
            raise ValueError(f"--variant {name}: {{llama-server}} needs --llama-server PATH")
    commands |= variants
    for name, url in args.url:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"--url: NAME=http://... is needed, got {name}={url}")
        if name in commands:
            raise ValueError(f"--url: the name {name!r} is taken")
        commands[name] = url
    return commands


def check_command(flag: str, command: str) -> None:
    """Raises ValueError that names `flag` when `command` cannot be read or has an unknown placeholder."""
    try:
        fill(command, **dict.fromkeys(PLACEHOLDERS, ""))
    except ValueError as error:
        raise ValueError(f"{flag}: {error}") from None


def servers(args: argparse.Namespace, model: Path | None, scratch: Path) -> list[Server]:
    """The servers of parsed flags, with `model`; each launched one has a directory of its own below `scratch`."""
    values = {"model": model, "threads": args.threads, "python": args.python, "binary": args.llama_server}
    values["chat_flags"] = chat_flags(model) if model else ""
    values["mmproj_flags"] = f"--mmproj {args.mmproj}" if args.mmproj and model == args.model[0] else ""
    urls = dict(args.url)
    return [
        Server(name, url=how, api_key=args.api_key)
        if name in urls
        else Server(name, command=how, values={**values, "scratch": tempfile.mkdtemp(dir=scratch)})
        for name, how in args.commands.items()
    ]


def _named(text: str) -> tuple[str, str]:
    name, _, what = text.partition("=")
    if not name or not what:
        raise argparse.ArgumentTypeError(f"NAME=... is needed, got {text!r}")
    return name, what


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in WORKLOADS]:
        raise argparse.ArgumentTypeError(f"unknown workload {unknown[0]!r}; known: {', '.join(WORKLOADS)}")
    return [name for name in WORKLOADS if name in names or any(WORKLOADS[other].after == name for other in names)]


def _counts(text: str) -> list[int]:
    return list(dict.fromkeys(count(part) for part in text.split(",")))


def count(text: str) -> int:
    """The whole number of a flag, at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a number of at least 1 is needed, got {text!r}")
    return int(text)


def positive(text: str) -> float:
    """The number of a flag, above 0."""
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"more than 0 is needed, got {text!r}")
    return value
