"""The header x-locallab-cache, in every dialect, in streams and in answers in one piece."""

from __future__ import annotations

import threading
from typing import get_args

import pytest

from locallab.engine.request import CacheUse, MissReason, Tier
from locallab.server import streaming
from locallab.server.reply import cache_headers, cache_text
from tests.support.dialect_requests import ROUTES
from tests.support.fake_engine import say
from tests.support.http_server import Served

NAME = "x-locallab-cache"


def length(served: Served) -> int:
    """Return the tokens of the last prompt: bytes, but for one before the text and those around a gap."""
    prompt, _ = served.engine.submitted[-1]
    for mark in ("<s>", "<PRE>", "<SUF>", "<MID>"):
        prompt = prompt.replace(mark, "#")
    return len(prompt.encode())


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", ROUTES)
def test_every_answer_says_what_the_cache_had(coder: Served, path: str, stream: bool) -> None:
    first = coder.http.post(path, json={**ROUTES[path], "stream": stream})
    coder.engine.cached, coder.engine.tier = 4, "host"
    second = coder.http.post(path, json={**ROUTES[path], "stream": stream})
    assert first.status_code == second.status_code == 200
    total = length(coder)
    assert first.headers[NAME] == f"hit=0/{total}; tier=none; stop=first time"
    assert second.headers[NAME] == f"hit=4/{total}; tier=host; stop=diverged at 4"


@pytest.mark.parametrize("stream", [True, False])
def test_answers_to_one_prompt_have_the_figures_of_the_first(served: Served, stream: bool) -> None:
    served.engine.cached = 2
    for body in ({"n": 3}, {"n": 1, "best_of": 3} if not stream else {"n": 2}):
        response = served.http.post("/v1/completions", json={"prompt": "hello", "stream": stream, **body})
        assert response.headers[NAME] == "hit=2/6; tier=resident; stop=diverged at 2"


def test_figures_of_several_prompts_are_summed_up(served: Served) -> None:
    served.engine.cached = 2
    response = served.http.post("/v1/completions", json={"prompt": ["hello", "hello", "hi"], "n": 2})
    assert response.headers[NAME] == f"hit=6/{6 + 6 + 3}; tier=resident; stop=diverged at 2"


def test_a_stream_that_begins_with_a_ping_has_it(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()
    served.script(go, *say("Fine."))
    monkeypatch.setattr(streaming, "IDLE", 0.2)
    with served.http.stream("POST", "/generate", json={"prompt": "hello", "stream": True}) as response:
        assert response.headers[NAME] == "hit=0/6; tier=none; stop=first time"
        go.set()
        assert "Fin" in response.read().decode()


def test_what_computes_no_prompt_has_none(served: Served) -> None:
    for path, body in {
        "/tokenize": {"content": "hello"},
        "/v1/messages/count_tokens": ROUTES["/v1/messages"],
        "/v1/completions": {"prompt": "hello", "max_tokens": 0},
        "/generate": {"prompt": "hello", "top_p": 7},
    }.items():
        response = served.http.post(path, json=body)
        assert NAME not in response.headers, (path, response.text)


def test_every_reason_has_a_text() -> None:
    texts = [cache_text(CacheUse(5, 20, "disk", reason, 9)) for reason in get_args(MissReason)]
    assert texts == [
        f"hit=5/20; tier=disk; stop={stop}"
        for stop in ("end", "first time", "diverged at 9", "evicted at 9", "no snapshot before 9")
    ]
    assert [cache_headers(CacheUse(5, 20, tier, "end", 5))[NAME].split("; ")[1] for tier in get_args(Tier)] == [
        "tier=none",
        "tier=resident",
        "tier=host",
        "tier=disk",
    ]
