"""Flags of scripts/bench: read, checked, and turned into the servers under test."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from benchlib.prompts import WORKLOADS
from benchlib.servers import COMMANDS, PLACEHOLDERS, Server, expand, fill

VARIANT = (
    "launch another server, or one of the above with other flags; in COMMAND "
    + ", ".join(f"{{{name}}}" for name in COMMANDS)
    + " stand for the usual commands, {context_total} for the tokens of KV memory, {scratch} for a directory "
    "that the run keeps and then removes; may be repeated. Usual: " + "; ".join(COMMANDS.values())
)


def parse(argv: list[str], description: str) -> argparse.Namespace:
    """Reads the flags; a wrong one ends the script with exit code 2 and a message that names it.

    Besides the flags the result has `commands`: how each server is reached, by its name.
    """
    parser = _parser(description)
    args = parser.parse_args(argv)
    args.rounds = args.rounds or (1 if args.quick else 3)
    args.clients = args.clients or ([2] if args.quick else [1, 8, 32])
    args.requests = args.requests or (1 if args.quick else None)
    args.workloads = args.workloads or [name for name in WORKLOADS if not (args.url and WORKLOADS[name].restart)]
    try:
        _check(args)
        args.commands = _commands(args)
    except ValueError as error:
        parser.error(str(error))
    args.reference = args.reference or next(iter(args.commands))
    if args.reference not in args.commands:
        parser.error(f"--reference {args.reference}: no such server; given: {', '.join(args.commands)}")
    return args


def _parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench", description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--model", type=Path, metavar="FILE", help="the .gguf that launched servers load")
    add("--llama-server", metavar="PATH", help="launch llama.cpp's C++ server, this binary")
    add("--locallab", action="store_true", help="launch LocalLab")
    add("--llama-cpp-python", action="store_true", help="launch python -m llama_cpp.server")
    add("--python", default=sys.executable, metavar="PATH", help="Python for --llama-cpp-python; default: this one")
    add("--variant", type=_named, action="append", default=[], metavar="NAME=COMMAND", help=VARIANT)
    add("--url", type=_named, action="append", default=[], metavar="NAME=URL", help="a running server; may be repeated")
    add("--api-key", metavar="KEY", help="sent to the servers of --url")
    add("--reference", metavar="NAME", help="the server that counts as 1.00; default: llama-server, else the first")
    add("--workloads", type=_names, metavar="LIST", help=f"default: {','.join(WORKLOADS)}; with --url no restart")
    add("--clients", type=_counts, metavar="LIST", help="default: 1,8,32; long has 5 of its own, cold and restart 1")
    add("--requests", type=count, metavar="N", help="requests of each client (of turns: conversations); default: 1 to 3")
    add("--rounds", type=count, metavar="N", help="default: 3; fewer say little")
    add("--threads", type=count, default=os.cpu_count() or 1, metavar="N", help="of launched servers; default: %(default)s")
    add("--seed", type=int, default=0, metavar="N", help="another gives other prompts: for servers warm from an earlier run")
    add("--timeout", type=positive, default=600.0, metavar="SECONDS", help="for one answer; default: %(default)g")
    add("--exclusive", action="store_true", help="start each launched server for its turn alone, when memory is short")
    add("--quick", action="store_true", help="a smoke test: 1 round, 2 clients, 1 request each, a quarter of the answers")
    add("--json", type=Path, metavar="FILE", help="write the samples of every round here")
    return parser


def _check(args: argparse.Namespace) -> None:
    launched = args.locallab or args.llama_server or args.llama_cpp_python or args.variant
    if not launched and not args.url:
        raise ValueError("no server given: use --llama-server, --locallab, --llama-cpp-python, --variant or --url")
    if launched and not (args.model and args.model.is_file()):
        raise ValueError(f"--model: a .gguf file is needed to launch servers, got {args.model}")
    if args.json and not args.json.parent.is_dir():
        raise ValueError(f"--json: no such directory: {args.json.parent}")
    if args.url and any(WORKLOADS[name].restart for name in args.workloads):
        raise ValueError("--workloads: restart needs servers that this script launches, not --url")


def _commands(args: argparse.Namespace) -> dict[str, str]:
    commands = {name: expand(f"{{{name}}}") for name in COMMANDS if getattr(args, name.replace("-", "_"))}
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


def servers(args: argparse.Namespace, scratch: Path) -> list[Server]:
    """The servers of parsed flags; each launched one has a directory of its own below `scratch`."""
    values = {"model": args.model, "threads": args.threads, "python": args.python, "binary": args.llama_server}
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
