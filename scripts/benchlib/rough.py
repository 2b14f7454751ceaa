"""Rough use of a server: all dialects, keys and roles at once, clients that leave or send nonsense, swaps, and kills."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchlib.prompts import WORDS
from benchlib.raw_http import Exchange, exchange, request

COMMAND = "locallab serve --port 0 --threads {threads} --context {context} --kv-tokens {kv} --no-rate-limit --no-access-log"
MODELS = ("one", "two")
KILLS = (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT)
HEALTH_SECONDS = 0.25
SETTLE_SECONDS = 30.0
LEFT, NONSENSE, WRONG_KEY, SWAP = 0.15, 0.2, 0.05, 0.02  # shares of requests

DIALECTS: dict[str, tuple[Callable[[str, int], dict[str, Any]], bytes]] = {
    "/v1/chat/completions": (lambda text, n: {"messages": _said(text), "max_tokens": n}, b"[DONE]"),
    "/v1/completions": (lambda text, n: {"prompt": text, "max_tokens": n}, b"[DONE]"),
    "/v1/responses": (lambda text, n: {"input": text, "max_output_tokens": max(n, 16)}, b'"response.'),
    "/v1/messages": (lambda text, n: {"messages": _said(text), "max_tokens": n}, b"message_stop"),
    "/api/chat": (lambda text, n: {"messages": _said(text), "options": {"num_predict": n}}, b'"done":true'),
    "/api/generate": (lambda text, n: {"prompt": text, "options": {"num_predict": n}}, b'"done":true'),
    "/completion": (lambda text, n: {"prompt": text, "n_predict": n}, b'"stop":true'),
    "/generate": (lambda text, n: {"prompt": text, "max_tokens": n}, b"[DONE]"),
    "/chat": (lambda text, n: {"messages": _said(text), "max_tokens": n}, b"[DONE]"),
}
"""Of each path that generates a body from a text and a number of tokens, and what the last event of a stream has."""

EXTRAS: tuple[dict[str, Any], ...] = (
    {},
    {},
    {"temperature": 0},
    {"n": 2},
    {"stop": ["the", "\n\n"]},
    {"seed": 7, "top_k": 5},
    {"response_format": {"type": "json_object"}},
    {"logprobs": True, "top_logprobs": 3},
)
"""Fields of chats and completions."""

NONSENSES: tuple[bytes, ...] = (
    request("POST", "/v1/chat/completions", b"{"),
    request("POST", "/v1/chat/completions", b'{"messages": "\xff\xfe"}'),
    request("POST", "/v1/chat/completions", b'{"messages": [{"role": 5, "content": {}}]}'),
    request("POST", "/v1/completions", b'{"prompt": "a", "max_tokens": "many"}'),
    request("POST", "/v1/completions", b'{"prompt": "a", "temperature": 1e999}'),
    request("POST", "/v1/completions", b'{"prompt": [1, 2, 99999999]}'),
    request("POST", "/v1/messages", b"[" * 5000 + b"]" * 5000),
    request("POST", "/api/chat", b'{"model": "one", "messages": [1]}'),
    request("POST", "/generate", b"\x1f\x8bgarbage", {"content-encoding": "gzip"}),
    request("POST", "/generate", b'{"prompt": "a"}', {"content-length": "4000"}),
    request("GET", "/v1/chat/completions"),
    request("GET", "/no/such/path"),
    request("GET", "/" + "x" * 20_000),
    b"NONSENSE\r\n\r\n",
    b"POST /generate HTTP/1.1\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
)
"""Requests that no server can answer with 200."""


def _said(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


@dataclass(slots=True)
class Seen:
    """What clients saw; `spans` are the times in which a child started, from its predecessor's kill to the first answer."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    health: list[tuple[float, float]] = field(default_factory=list)  # when, seconds
    spans: list[tuple[float, float]] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)  # of the child, when idle at the start and at the end

    def starting(self, found: Exchange) -> bool:
        """Whether a child started during the exchange."""
        return any(found.began < back and kill <= found.ended for kill, back in self.spans)


class Rough:
    """The server and its clients. `keys` are by role; without roles all may do everything."""

    def __init__(self, args: Any, port: int, keys: dict[str, str]) -> None:
        self.args, self.port, self.keys = args, port, keys
        self.random = random.Random(args.seed)
        self.seen = Seen()
        self._pending: list[tuple[str, Exchange, Callable[[Exchange], str | None]]] = []
        self._over = False

    async def run(self) -> None:
        """Keeps every client busy until the time is over."""
        deadline = time.monotonic() + self.args.minutes * 60
        helpers = [asyncio.create_task(self._watch_health()), asyncio.create_task(self._kill(deadline))]
        await asyncio.gather(*(self._client(deadline) for _ in range(self.args.clients)))
        self._over = True
        await asyncio.gather(*helpers)
        for what, found, problem in self._pending:
            self._judge(what, found, problem(found))

    async def ask(self, method: str, path: str, body: Any = None, role: str = "admin") -> Exchange:
        """One plain request."""
        data = None if body is None else json.dumps(body).encode()
        return await exchange(self.port, request(method, path, data, self._auth(role)), self.args.timeout)

    def _auth(self, role: str) -> dict[str, str]:
        return {"authorization": f"Bearer {self.keys[role]}"}

    async def _client(self, deadline: float) -> None:
        while time.monotonic() < deadline:
            chance = self.random.random()
            if chance < NONSENSE:
                await self._nonsense()
            elif chance < NONSENSE + WRONG_KEY:
                await self._wrong_key()
            elif chance < NONSENSE + WRONG_KEY + SWAP:
                await self._swap()
            else:
                await self._generate()

    async def _generate(self) -> None:
        path = self.random.choice(list(DIALECTS))
        make, end = DIALECTS[path]
        body = make(" ".join(self.random.choices(WORDS, k=self.random.randint(3, 60))), self.random.randint(4, 40))
        body |= {"model": self.random.choice((MODELS[0],) * 9 + (MODELS[1],)), "stream": (stream := self.random.random() < 0.6)}
        if path in ("/v1/chat/completions", "/v1/completions"):
            extra = self.random.choice(EXTRAS)
            body |= extra if path == "/v1/chat/completions" or "logprobs" not in extra else {"logprobs": 3}
        leave = self.random.randint(1, 2000) if self.random.random() < LEFT else None
        role = self.random.choice(list(self.keys))
        sent = request("POST", path, json.dumps(body).encode(), self._auth(role))
        found = await exchange(self.port, sent, self.args.timeout, leave)

        def problem(found: Exchange) -> str | None:
            if found.left or found.status != 200:
                return None
            return f"cut off: {path}" if (end if stream else b"}") not in found.body[-4000:] else None

        self._saw(path, found, problem)

    async def _nonsense(self) -> None:
        sent = self.random.choice(NONSENSES)
        if b"\r\n\r\n" in sent and sent.startswith((b"GET", b"POST")):
            sent = sent.replace(b"\r\n", f"\r\nauthorization: Bearer {self.keys['admin']}\r\n".encode(), 1)
        timeout = 2.0 if sent.startswith((b"POST /generate HTTP/1.1\r\n", b"\x16")) else self.args.timeout
        found = await exchange(self.port, sent, timeout)
        name = (sent[:20] + b"..." + sent[-40:]).decode("latin-1")
        self._saw("malformed", found, lambda found: f"200 for {name!r}" if 200 <= found.status < 300 else None, silent=True)

    async def _wrong_key(self) -> None:
        sent = request("POST", "/generate", b'{"prompt": "a"}', {"authorization": "Bearer nobody"})
        found = await exchange(self.port, sent, self.args.timeout)
        self._saw("wrong keys", found, lambda found: None if found.status in (0, 401, 429, 503) else "a wrong key gets in")

    async def _swap(self) -> None:
        role = self.random.choice(list(self.keys))
        loads = self.random.random() < 0.7
        body = {"model_id": self.random.choice(MODELS)}
        found = await self.ask("POST", "/models/load" if loads else "/models/unload", body, role)
        self._saw("swaps", found, lambda found: "a user may load models" if role == "use" and found.status == 200 else None)

    def _saw(self, what: str, found: Exchange, problem: Callable[[Exchange], str | None], silent: bool = False) -> None:
        self.seen.counts["requests"] += 1
        self.seen.counts[what] += 1
        self.seen.counts[f"status {found.status}" if found.status and not found.left else "left or broken"] += 1
        self.seen.counts["left"] += found.left
        if found.status >= 500 or (not found.status and not found.left and not silent) or problem(found):
            self._pending.append((what, found, problem))  # judged when it is known whether a child was starting

    def _judge(self, what: str, found: Exchange, problem: str | None) -> None:
        starting = self.seen.starting(found)
        if found.status == 503 and "retry-after" in found.headers:
            self.seen.counts["503 with Retry-After"] += 1
        elif found.status >= 500:
            self.seen.wrong[f"{found.status} for {what}: {found.body[:200].decode('utf-8', 'replace')}"] += 1
        elif starting and (not found.status or (problem or "").startswith("cut off")):
            self.seen.counts["lost by a kill"] += 1
        elif not found.status:
            self.seen.wrong[f"no answer for {what} within {found.seconds:.1f} s"] += 1
        elif problem:
            self.seen.wrong[problem] += 1

    async def _watch_health(self) -> None:
        while not self._over:
            found = await exchange(self.port, request("GET", "/health"), self.args.timeout)
            if found.status == 200:
                self.seen.health.append((found.began, found.seconds))
            await asyncio.sleep(HEALTH_SECONDS)

    async def _kill(self, deadline: float) -> None:
        """Kills the child now and then, and measures how long it takes until the next one answers."""
        number = 0
        while self.args.kill_every and time.monotonic() + self.args.kill_every < deadline:
            await asyncio.sleep(self.args.kill_every)
            pid = await self.pid()
            if pid is None:
                continue
            killed = time.monotonic()
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, KILLS[number % len(KILLS)])
            number += 1
            self.seen.counts["kills"] += 1
            await asyncio.sleep(0.05)
            while (found := await exchange(self.port, request("GET", "/health"), 5.0)).status != 200:
                await asyncio.sleep(0.05)
            self.seen.spans.append((killed, found.ended))

    async def pid(self) -> int | None:
        """The server's own process, a child of its supervisor."""
        info = (await self.ask("GET", "/system/info")).json()
        return info["process"]["pid"] if info else None

    async def idle(self) -> dict[str, Any]:
        """The figures of an idle server with the first model loaded; waits for that."""
        deadline, info = time.monotonic() + SETTLE_SECONDS, None
        while time.monotonic() < deadline:
            await self.ask("POST", "/models/load", {"model_id": MODELS[0]})
            await self.ask("POST", "/v1/completions", {"model": MODELS[0], "prompt": "a", "max_tokens": 1})
            info = (await self.ask("GET", "/system/info")).json()
            if info and info["model"] and not (info["model"]["stats"]["running"] or info["model"]["stats"]["waiting"]):
                break
            await asyncio.sleep(0.2)
        if not info or not info["model"]:
            raise RuntimeError("the server does not come to rest")
        pid, stats = info["process"]["pid"], info["model"]["stats"]
        return {
            "pid": pid,
            "resident": info["process"]["resident_bytes"],
            "descriptors": len(os.listdir(f"/proc/{pid}/fd")),
            "sequences": stats["running"] + stats["waiting"],
            "cells": stats["kv_used"] - stats["cached"],
        }


def resident(pid: int) -> int:
    """Bytes of resident memory of a process."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) << 10  # type: ignore[index]


def make_keys(env: dict[str, str]) -> dict[str, str]:
    """Creates a key for each role, or two keys where there are no roles."""
    base = [sys.executable, "-m", "locallab", "keys", "create"]
    roles = "--role" in subprocess.run([*base, "--help"], env=env, capture_output=True, text=True, check=True).stdout
    keys = {}
    for role in ("admin", "use"):
        flags = ["--name", role, "--tier", "pro", "--json", *(["--role", role] if roles else [])]
        made = subprocess.run([*base, *flags], env=env, capture_output=True, text=True, check=True)
        keys[role if roles or role == "admin" else "another"] = json.loads(made.stdout)["key"]
    return keys


def soak(args: Any, scratch: Path, say: Callable[[str], None]) -> list[str]:
    """Starts a server, uses it roughly, prints a table of figures, and gives what is wrong."""
    env = {**os.environ, "LOCALLAB_HOME": str(scratch)}
    entries = [{"id": name, "description": "a soak", "source": {"kind": "file", "path": str(args.model)}} for name in MODELS]
    registry = scratch / "soak.yaml"
    registry.write_text(json.dumps({"models": entries}))  # JSON is YAML
    keys = make_keys(env)
    size = {
        "threads": args.threads,
        "context": args.context,
        "kv": max(args.context, args.context * args.clients // args.scarcity),
    }
    command = [sys.executable, "-m", *shlex.split(COMMAND.format(**size)), "--model", MODELS[0], "--registry", str(registry)]
    log = scratch / "server.log"
    say(shlex.join(command))
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=output, text=True, start_new_session=True)
    try:
        assert process.stdout
        found = re.search(r":(\d+)", process.stdout.readline())
        if found is None:
            raise RuntimeError(f"the server does not start:\n{log.read_text(errors='replace')[-2000:]}")
        rough = Rough(args, int(found[1]), keys)
        before, after, parents = asyncio.run(_measured(rough, process.pid))
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(SETTLE_SECONDS)
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()
    report(rough.seen, before, after, parents)
    tracebacks = log.read_text(errors="replace").count("Traceback (most recent call last)")
    return problems(rough.seen, before, after, parents, tracebacks, args.grown_mib)


async def _measured(rough: Rough, pid: int) -> tuple[dict[str, Any], dict[str, Any], tuple[int, int]]:
    """Runs it between two looks at the idle server; the last figures are the descriptors of its supervisor."""
    before, handles = await rough.idle(), len(os.listdir(f"/proc/{pid}/fd"))
    await rough.run()
    return before, await rough.idle(), (handles, len(os.listdir(f"/proc/{pid}/fd")))


def report(seen: Seen, before: dict[str, Any], after: dict[str, Any], parents: tuple[int, int]) -> None:
    """Prints the table."""
    calm = [seconds for began, seconds in seen.health if not any(a - 1 < began < b + 1 for a, b in seen.spans)]
    back = [b - a for a, b in seen.spans]
    statuses = sorted(name for name in seen.counts if name.startswith("status "))
    rows = [
        ("requests", f"{seen.counts['requests']:,}"),
        *((f"of them {path}", f"{seen.counts[path]:,}") for path in (*DIALECTS, "malformed", "wrong keys", "swaps", "left")),
        *((name, f"{seen.counts[name]:,}") for name in statuses),
        ("5xx but 503 with Retry-After", f"{sum(n for what, n in seen.wrong.items() if re.match('5..', what)):,}"),
        ("503 with Retry-After", f"{seen.counts['503 with Retry-After']:,}"),
        ("kills of the child", f"{seen.counts['kills']:,}"),
        ("requests lost by a kill", f"{seen.counts['lost by a kill']:,}"),
        ("longest time without `/health` after a kill", f"{max(back, default=0):.2f} s"),
        ("worst `/health` otherwise", f"{max(calm, default=0):.3f} s"),
        ("memory of the child, start and end", f"{before['resident'] >> 20} MiB, {after['resident'] >> 20} MiB"),
        ("descriptors of the child, start and end", f"{before['descriptors']}, {after['descriptors']}"),
        ("descriptors of the supervisor, start and end", f"{parents[0]}, {parents[1]}"),
        ("sequences left", str(after["sequences"])),
        ("cells left", str(after["cells"])),
    ]
    print("| what | figure |\n|---|---|")
    for what, figure in rows:
        print(f"| {what} | {figure} |")


def problems(
    seen: Seen, before: dict[str, Any], after: dict[str, Any], parents: tuple[int, int], tracebacks: int, grown_mib: float
) -> list[str]:
    """What is wrong, in words."""
    found = [f"{count} x {what}" for what, count in seen.wrong.items()]
    if not seen.health:
        found.append("/health never answered")
    found += [f"{after[what]} {what} left" for what in ("sequences", "cells") if after[what]]
    grown = (after["resident"] - before["resident"]) / 2**20
    if grown > grown_mib:
        found.append(f"the child has grown by {grown:.0f} MiB")
    if after["descriptors"] > before["descriptors"] + 2:
        found.append(f"the child has {after['descriptors'] - before['descriptors']} more descriptors")
    if parents[1] > parents[0]:
        found.append(f"the supervisor has {parents[1] - parents[0]} more descriptors")
    if tracebacks:
        found.append(f"{tracebacks} tracebacks in the log")
    return found
