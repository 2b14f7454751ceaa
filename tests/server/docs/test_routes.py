"""The docs page: self-contained, with every route, and interactive; its script runs under node."""

from __future__ import annotations

import base64
import hashlib
import html.parser
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.fake_engine import TEXT
from tests.support.http_server import Served
from tests.support.openapi_check import Described

needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")


def show(served: Served, route: str, body: str) -> dict[str, Any]:
    """Open every route of the page, send this one with this body, and return what the page shows."""
    script = Path(__file__).parent / "docs_page.mjs"
    done = subprocess.run(
        ["node", str(script), f"{served.url}/docs", route, body], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    shown: dict[str, Any] = json.loads(done.stdout)
    return shown


class Tags(html.parser.HTMLParser):
    """Every tag's attributes, and the tags that are not closed."""

    VOID = ("meta", "link", "input")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self.open += [] if tag in self.VOID else [tag]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_in_itself(served: Served) -> None:
    response = served.http.get("/docs")
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    tags = Tags(response.text)
    assert tags.open == []
    links = [attrs[name] or "" for _, attrs in tags.found for name in ("src", "href") if name in attrs]
    assert links and all(link in ("openapi.json", "data:,") for link in links)
    assert not re.search(r"https?://|@import", response.text)
    assert len(response.content) < 20_000


def test_every_input_has_a_label_and_the_page_a_language(served: Served) -> None:
    tags = Tags(served.http.get("/docs").text).found
    assert next(attrs for tag, attrs in tags if tag == "html")["lang"] == "en"
    labelled = {attrs["for"] for tag, attrs in tags if tag == "label"}
    assert {attrs["id"] for tag, attrs in tags if tag == "input"} <= labelled


def test_the_policy_allows_its_own_script_and_style_only(served: Served) -> None:
    response = served.http.get("/docs")
    policy = dict(part.strip().split(" ", 1) for part in response.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'" and policy["connect-src"] == "'self'"
    for tag in ("script", "style"):
        [text] = re.findall(rf"<{tag}>(.*?)</{tag}>", response.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert policy[f"{tag}-src"] == f"'sha256-{digest}'"
    assert " style=" not in response.text and not re.search(r" on\w+=", response.text)


@needs_node
def test_every_route_is_shown_with_its_fields(served: Served) -> None:
    shown = show(served, "POST /generate", '{"prompt": "hi"}')
    described = Described(served.http.get("/openapi.json").json())
    assert sorted(shown["routes"]) == sorted(f"{verb.upper()} {path}" for verb, path, _ in described.operations())
    cells = {row[0]: row[1:] for row in shown["cells"]}
    assert cells["prompt *"] == ["string", "the text to complete"]
    kind, meaning = cells["temperature"]
    assert kind == "number | null" and meaning.endswith("at least 0, at most 100, default 0.8")
    assert "usage.prompt_tokens_details.cached_tokens *" in cells
    assert json.loads(shown["example"])["prompt"]
    assert "WebSocket" in shown["about"] and "native" in shown["groups"]


@needs_node
def test_a_route_can_be_tried(served: Served) -> None:
    shown = show(served, "POST /generate", '{"prompt": "hi"}')
    assert json.loads(shown["output"])["response"] == TEXT
    assert shown["status"].startswith("200 OK, ") and shown["disabled"] is False
    wrong = show(served, "POST /generate", "{}")
    assert wrong["status"].startswith("400") and json.loads(wrong["output"])["detail"] == "prompt: is missing"


@needs_node
@pytest.mark.parametrize(
    ("route", "body"), [("POST /generate", {"prompt": "hi"}), ("POST /chat", {"messages": [{"role": "user", "content": "hi"}]})]
)
def test_a_stream_is_shown_as_its_text(served: Served, route: str, body: dict[str, Any]) -> None:
    shown = show(served, route, json.dumps({**body, "stream": True}))
    text, last = shown["output"].split("\n\n", 1)
    assert text == TEXT and json.loads(last)["usage"]["completion_tokens"] == len(TEXT.encode())


@needs_node
@pytest.mark.parametrize(
    ("path", "more"), [("/api/chat", {}), ("/v1/messages", {"max_tokens": 100}), ("/v1/chat/completions", {})]
)
def test_streams_of_other_dialects_are_shown_too(served: Served, path: str, more: dict[str, Any]) -> None:
    body = {"model": "tiny:1b", "messages": [{"role": "user", "content": "hi"}], "stream": True, **more}
    assert show(served, f"POST {path}", json.dumps(body))["output"].startswith(f"{TEXT}\n\n{{")


@needs_node
def test_the_curl_command_does_what_it_says(served: Served) -> None:
    body = json.dumps({"prompt": 'it\'s $HOME \\ "x"'})
    command = show(served, "POST /generate", body)["curl"]
    words = shlex.split(command)
    assert words[:4] == ["curl", "-X", "POST", f"{served.url}/generate"]
    assert "Authorization: Bearer it's secret" in words and words[-1] == body
