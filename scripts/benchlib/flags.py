"""Flags of scripts/bench: read, checked, and turned into the servers under test."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from benchlib.prompts import WORKLOADS
from benchlib.servers import PLACEHOLDERS, Server, fill

COMMANDS = {
    "llama-server": (
        "{binary} -m {model} --host 127.0.0.1 --port {port} -t {threads} -tb {threads} "
        "-np {clients} -c {context_total} --no-webui"
    ),
    "locallab": (
        "locallab serve --model {model} --port {port} --threads {threads} --context {context} "
        "--kv-tokens {context_total} --parallel 64 --no-access-log --log-level warning"
    ),
    "llama-cpp-python": (
        "{python} -m llama_cpp.server --model {model} --host 127.0.0.1 --port {port} --n_threads {threads} "
        "--n_threads_batch {threads} --n_ctx {context} --logits_all false --flash_attn true --verbose false"
    ),
}


def parse(argv: list[str], description: str) -> argparse.Namespace:
    """Reads the flags; a wrong one ends the script with exit code 2 and a message that names it.

    Besides the flags the result has `servers`, and `commands`: how each was reached, by its name.
    """
    parser = _parser(description)
    args = parser.parse_args(argv)
    args.rounds = args.rounds or (1 if args.quick else 3)
    args.clients = args.clients or ([2] if args.quick else [1, 8, 32])
    args.requests = args.requests or (1 if args.quick else None)
    try:
        _check(args)
        args.commands = _commands(args)
    except ValueError as error:
        parser.error(str(error))
    args.servers = _servers(args)
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
    for name, command in COMMANDS.items():
        add(f"--{name}-command", default=command, metavar="TEMPLATE", help=f"default: {command}")
    add("--url", action="append", default=[], metavar="NAME=URL", help="a server that runs already; may be repeated")
    add("--api-key", metavar="KEY", help="sent to the servers of --url")
    add("--reference", metavar="NAME", help="the server that counts as 1.00; default: llama-server, else the first")
    add("--workloads", type=_names, default=list(WORKLOADS), metavar="LIST", help=f"default: {','.join(WORKLOADS)}")
    add("--clients", type=_counts, metavar="LIST", help="default: 1,8,32; long has 5 of its own")
    add("--requests", type=_count, metavar="N", help="requests of each client; default: 3, shared and shared-warm 2")
    add("--rounds", type=_count, metavar="N", help="default: 3; fewer say little")
    add("--threads", type=_count, default=os.cpu_count() or 1, metavar="N", help="of launched servers; default: %(default)s")
    add("--seed", type=int, default=0, metavar="N", help="another gives other prompts: for servers warm from an earlier run")
    add("--timeout", type=_seconds, default=600.0, metavar="SECONDS", help="for one answer; default: %(default)g")
    add("--exclusive", action="store_true", help="start each launched server for its turn alone, when memory is short")
    add("--quick", action="store_true", help="a smoke test: 1 round, 2 clients, 1 request each, a quarter of the answers")
    add("--json", type=Path, metavar="FILE", help="write the samples of every round here")
    return parser


def _check(args: argparse.Namespace) -> None:
    launched = args.locallab or args.llama_server or args.llama_cpp_python
    if not launched and not args.url:
        raise ValueError("no server given: use --llama-server, --locallab, --llama-cpp-python or --url")
    if launched and not (args.model and args.model.is_file()):
        raise ValueError(f"--model: a .gguf file is needed to launch servers, got {args.model}")
    if args.json and not args.json.parent.is_dir():
        raise ValueError(f"--json: no such directory: {args.json.parent}")
    if "shared-warm" in args.workloads and "shared" not in args.workloads:
        raise ValueError("--workloads: shared-warm needs shared, which it follows")


def _commands(args: argparse.Namespace) -> dict[str, str]:
    commands: dict[str, str] = {}
    for name in COMMANDS:
        if getattr(args, _key(name)):
            commands[name] = getattr(args, _key(f"{name}-command"))
            try:
                fill(commands[name], **dict.fromkeys(PLACEHOLDERS, ""))
            except ValueError as error:
                raise ValueError(f"--{name}-command: {error}") from None
    for given in args.url:
        name, _, url = given.partition("=")
        if not name or not url.startswith(("http://", "https://")):
            raise ValueError(f"--url: NAME=http://... is needed, got {given!r}")
        if name in commands:
            raise ValueError(f"--url: the name {name!r} is taken")
        commands[name] = url
    return commands


def _servers(args: argparse.Namespace) -> list[Server]:
    values = {"model": args.model, "threads": args.threads, "python": args.python, "binary": args.llama_server}
    urls = {given.partition("=")[0] for given in args.url}
    return [
        Server(name, url=how, api_key=args.api_key) if name in urls else Server(name, command=how, values=values)
        for name, how in args.commands.items()
    ]


def _key(flag: str) -> str:
    return flag.replace("-", "_")


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in WORKLOADS]:
        raise argparse.ArgumentTypeError(f"unknown workload {unknown[0]!r}; known: {', '.join(WORKLOADS)}")
    return list(dict.fromkeys(names))


def _counts(text: str) -> list[int]:
    return list(dict.fromkeys(_count(part) for part in text.split(",")))


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a number of at least 1 is needed, got {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"more than 0 seconds are needed, got {text!r}")
    return value
