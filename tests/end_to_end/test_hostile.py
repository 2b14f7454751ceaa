"""What attacks: nothing of it ends the server, holds up its other clients or stays in its memory."""

from __future__ import annotations

import subprocess
import sys
import time
from functools import partial
from itertools import takewhile
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from tests.support.bystanders import Bystanders, Seen, bystanders
from tests.support.hostile_inputs import MIB, TEMPLATES, Input, everything, models
from tests.support.hostile_sockets import attacks
from tests.support.served_process import serving

HEALTH = 0.5
GAP = 1.0
ROOM = 64 * MIB
LOOK = 3.0
TRIES = 8
"""Seconds for an answer of /health and between two events of a stream, bytes that may be lost to all attacks together, seconds
of a look without an attack, and the times that an attack must succeed: others use the machine too."""


def attack(url: str, each: Input) -> list[str]:
    """Send one input; return what is wrong with the answer."""
    try:
        answer = httpx.post(url + each.path, content=each.content(), timeout=60)
    except httpx.HTTPError as error:
        return [repr(error)]
    status = answer.status_code
    if each.failing:
        fine = status >= 400 and "internal" not in answer.text
    else:
        fine = status in range(400, 500) or (status == 200 and not each.refused)
    return [] if fine else [f"{status}: {answer.text[:300]}"]


def late(seen: Seen, usual: Seen) -> list[str]:
    """Return who waited too long, on a machine where others work too: `usual` is what they see without an attack."""
    return [
        *(f"a bystander got {each}" for each in seen.wrong),
        *([f"/health took {seen.health:.2f} s"] if seen.health > max(HEALTH, 4 * usual.health) else []),
        *([f"a stream paused for {seen.gap:.2f} s"] if seen.gap > max(GAP, 4 * usual.gap) else []),
    ]


def use(url: str) -> None:
    """Make the server take what a server in use takes: the KV cache, logits, tables of the vocabulary, grammars."""
    with httpx.Client(base_url=url, timeout=60) as http:
        for token in range(100, 108):
            http.post("/v1/completions", json={"prompt": [token] * 2000, "max_tokens": 4})
        http.post("/v1/completions", json={"prompt": [100] * 1000, "max_tokens": 4, "prompt_logprobs": 1})
        http.post("/v1/completions", json={"prompt": "a b c d e " * 100, "max_tokens": 200, "ignore_eos": True})
        for i in range(64):
            http.post("/v1/completions", json={"prompt": "Hi", "max_tokens": 4, "guided_regex": f"[a-z]{{1,9}} {i}"})
        http.post("/v1/completions", json={"prompt": "Hi", "max_tokens": 4, "dry_multiplier": 0.8, "stop": ["x" * 16_000]})
        http.post("/tokenize", json={"content": "word " * 800_000, "with_pieces": True})


def served_by(pid: int) -> psutil.Process:
    """Return the process that computes: the child of the supervisor."""
    parent = psutil.Process(pid)
    return next(iter(parent.children()), parent)


def usual(watching: Bystanders) -> Seen:
    watching.look()
    time.sleep(LOOK)
    return watching.look()


def judged(watching: Bystanders, normal: Seen) -> list[str]:
    """Return who waited too long since the last look. An attack may keep a core: what is late is compared with what bystanders
    see now beside a process that keeps one."""
    seen = watching.look()
    if not late(seen, normal):
        return []
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        crowded = usual(watching)
        busy.kill()
    return late(seen, crowded)


@pytest.mark.timeout(1200)
def test_nothing_stops_the_server_or_delays_others(model_path: Path, tmp_path: Path) -> None:
    wrong = {}
    registry = tmp_path / "hostile.yaml"
    registry.write_text(models(tmp_path))
    sizes = ("--context", "2048", "--kv-tokens", "8192", "--cache-ram-mib", "0")
    flags = (*sizes, "--no-rate-limit", "--on-demand", "keep", "--registry", str(registry))
    with serving(model_path, *flags) as server, bystanders(server.url) as watching:
        address = urlsplit(server.url)
        inputs = ((each.name, partial(attack, server.url, each)) for each in everything())
        sockets = ((name, partial(act, (address.hostname, address.port))) for name, act in attacks())
        child = served_by(server.process.pid)
        use(server.url)
        normal, before = usual(watching), child.memory_info().rss
        for name, act in (*inputs, *sockets):
            tries = ([*(act() or ()), *judged(watching, normal)] for _ in range(TRIES))
            found = list(takewhile(bool, tries))
            if len(found) == TRIES:
                wrong[name] = found
        for model in TEMPLATES:
            httpx.post(f"{server.url}/models/unload", json={"model_id": model}, timeout=60).raise_for_status()
        watching.look()
        assert not all(time.sleep(LOOK) or judged(watching, normal) for _ in range(TRIES))
        assert served_by(server.process.pid) == child
        assert child.memory_info().rss - before < ROOM
    assert not wrong
