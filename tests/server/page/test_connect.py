"""The view "connect"."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from locallab.keys import KeyStore
from locallab.replay import EXCHANGES
from locallab.server.usage import Slot, Spent, UsageFile, first_day
from tests.support.browser import Tab
from tests.support.fake_engine import TEXT
from tests.support.http_server import Serve, Served
from tests.support.pages import ROOT
from tests.support.served_process import Process
from tests.support.wait import until

Visit = Callable[..., Tab]
MARKUP = "<img src=x onerror=\"document.title='ran'\">"
REVERSED = "\u202egnp.exe"
CLIPBOARD = ["clipboard-read", "clipboard-write"]
EXAMPLES = ("http://127.0.0.1:8000", "qwen2.5-coder:1.5b-q4_k_m", "qwen2.5-coder:7b-q4_k_m", "32768")


def open_with(visit: Visit, served: Served, key: str = "", path: str = "", **options: Any) -> Page:
    tab = visit(served.url, **options)
    if key:
        tab.page.add_init_script(f"sessionStorage.setItem('locallab-key', '{key}')")
    return tab.open(f"#/connect{path}")


def code(page: Page) -> str:
    return page.locator(".setup pre").first.inner_text()


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def documented() -> dict[str, list[str]]:
    """Return the set-ups of the documentation by client: prose and code in turns."""
    page = (ROOT / "locallab/cli/doctor/README.md").read_text()
    section = re.split(r"^## ", page.split("\n## Set-ups\n")[1], maxsplit=1, flags=re.MULTILINE)[0]
    parts = [part.partition("\n") for part in re.split(r"^### ", section, flags=re.MULTILINE)[1:]]
    return {client: re.split(r"^```(?:\w+\n)?", content, flags=re.MULTILINE) for client, _, content in parts}


def test_the_set_ups_are_those_of_the_documentation(visit: Visit, served: Served) -> None:
    page = visit(served.url).open("#/connect")
    links = page.locator(".parts nav a")
    assert links.all_inner_texts() == list(documented())
    replayed = set()
    for client, steps in documented().items():
        links.get_by_text(client, exact=True).click()
        expect(page.get_by_role("heading", name=f"Set-up: {client}")).to_be_visible()
        for number, text in enumerate(steps):
            for example, real in zip(EXAMPLES, (served.url, "tiny:1b", "tiny:1b", "512"), strict=True):
                text = text.replace(example, real)
            if number % 2:
                expect(page.locator(".setup pre").nth(number // 2)).to_have_text(text)
            elif text.strip():
                expect(page.locator(".setup")).to_contain_text(text.strip().replace("`", ""))
        assert not re.search("|".join(map(re.escape, EXAMPLES)), page.locator(".setup").inner_text())
        replayed |= {
            each.removeprefix("Send what ").removesuffix(" sends") for each in page.locator(".replay button").all_inner_texts()
        }
    assert replayed == {each.client for each in EXCHANGES}


def test_the_snippet_of_openai_python_works_as_it_is_shown(visit: Visit, live: Process) -> None:
    page = visit(live.url).open("#/connect/openai-python")
    expect(page.get_by_role("heading", name="Set-up: openai-python")).to_be_visible()
    assert f'base_url="{live.url}/v1"' in code(page)
    assert run(sys.executable, "-c", code(page)).strip()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_a_key_is_shown_and_copied_when_that_is_asked_for(visit: Visit, serve: Serve, tmp_path: Path) -> None:
    _, key = KeyStore(tmp_path / "keys.json").create("ann", "pro", "use")
    with serve() as served:
        page = open_with(visit, served, key, "/curl", permissions=CLIPBOARD)
        expect(page.locator(".key")).to_contain_text("that of ann")
        assert "Bearer YOUR_KEY" in code(page) and key not in page.content()
        page.get_by_role("button", name="Copy with the key").click()
        expect(page.locator("#notice")).to_have_text("Copied, with the key.")
        assert TEXT in run("bash", "-c", page.evaluate("navigator.clipboard.readText()"))
        page.get_by_role("button", name="Copy", exact=True).click()
        expect(page.locator("#notice")).to_have_text("Copied.")
        assert key not in page.evaluate("navigator.clipboard.readText()")
        page.get_by_role("button", name="Show the key").click()
        assert TEXT in run("bash", "-c", code(page))
        page.get_by_role("button", name="Hide the key").click()
        assert key not in page.content()


def test_address_and_model_are_chosen(visit: Visit, served: Served) -> None:
    tab = visit(served.url)
    public = "https://tiny.example.app"

    def with_public(route: Any) -> None:
        response = route.fetch()
        route.fulfill(response=response, json={**response.json(), "public_url": public})

    tab.page.route("**/system/info", with_public)
    page = tab.open("#/connect/Zed")
    assert f'"api_url": "{public}/v1"' in code(page) and '"max_tokens": 512' in code(page)
    page.get_by_label("Address").select_option(served.url)
    page.get_by_label("Model").select_option("other:2b")
    assert f'"api_url": "{served.url}/v1"' in code(page) and '"name": "other:2b"' in code(page)
    page.locator(".parts nav").get_by_role("link", name="Codex").click()
    expect(page.get_by_role("heading", name="Set-up: Codex")).to_be_visible()
    assert 'model = "other:2b"' in code(page)
    page.go_back()
    expect(page.get_by_role("heading", name="Set-up: Zed")).to_be_visible()


def test_what_a_client_sends_is_replayed(visit: Visit, live: Process) -> None:
    tab = visit(live.url)
    page = tab.open("#/connect/opencode and Cursor")
    page.get_by_role("button", name="Send what Cursor sends").click()
    expect(page.get_by_role("status").filter(has_text="Cursor: 2 ok, 0 failed.")).to_be_visible(timeout=60_000)
    first = page.locator(".outcomes li").first
    first.locator("summary").click()
    expect(first).to_contain_text("Sent POST /v1")
    expect(first).to_contain_text('"model"')
    expect(first).to_contain_text("Received, status 200")
    assert tab.violations() == []


def test_a_failure_is_shown_with_its_reason_as_text(visit: Visit, served: Served) -> None:
    tab = visit(served.url)
    outcome = {"doing": "asks", "status": "fail", "reason": f"{MARKUP}{REVERSED}", "method": "POST", "path": f"/{MARKUP}"}
    skipped = {
        **outcome,
        "doing": "waits",
        "status": "skip",
        "reason": "no key",
        "http_status": None,
        "answer": None,
        "body": None,
    }
    sent = [{**outcome, "body": {"text": MARKUP}, "http_status": 400, "answer": f"{MARKUP}{REVERSED}"}, skipped]
    body = "".join(json.dumps(each) + "\n" for each in sent)
    tab.page.route("**/api/v1/replay", lambda route: route.fulfill(body=body, content_type="application/x-ndjson"))
    page = tab.open("#/connect/aider")
    page.get_by_role("button", name="Send what aider sends").click()
    expect(page.locator(".replay [role=status]")).to_have_text("aider: 0 ok, 1 failed, 1 left out.")
    failed = page.locator(".outcomes li").first
    failed.locator("summary").click()
    expect(failed.locator(".reason")).to_have_text(f"{MARKUP}⟨U+202E⟩gnp.exe")
    expect(failed.locator("pre").last).to_have_text(f"{MARKUP}⟨U+202E⟩gnp.exe")
    assert page.locator("main img").count() == 0
    page.locator(".parts nav").get_by_role("link", name="Zed").click()
    expect(page.locator(".outcomes li")).to_have_count(0)
    page.locator(".parts nav").get_by_role("link", name="aider").click()
    expect(page.locator(".outcomes li")).to_have_count(2)  # they stay while other clients are shown


def test_a_replay_is_stopped(visit: Visit, serve: Serve) -> None:
    with serve() as served:
        served.script(threading.Event())
        page = open_with(visit, served, path="/opencode and Cursor")
        page.get_by_role("button", name="Send what Cursor sends").click()
        until(lambda: len(served.engine.submitted) == 1)
        page.get_by_role("button", name="Stop").click()
        expect(page.locator(".replay [role=status]")).to_have_text("Cursor: stopped.")
        until(lambda: len(served.engine.cancelled) == 1)


def test_usage_is_summed_and_others_see_their_own(visit: Visit, serve: Serve, tmp_path: Path) -> None:
    keys = KeyStore(tmp_path / "keys.json")
    (ann, use), (_, admin) = keys.create("ann", "pro", "use"), keys.create("root", "free", "admin")
    evil = f"{MARKUP}{REVERSED}"
    spent = {
        Slot(first_day(1), ann.id, "tiny:1b"): Spent("ann", 2, 1000, 400, 30),
        Slot(first_day(3), ann.id, "other:2b"): Spent("ann", 1, 10, 0, 5),
        Slot(first_day(20), "x", "tiny:1b"): Spent(evil, 7, 70, 0, 7000),
    }
    UsageFile().add(spent, first_day(90))
    with serve() as served:
        page = open_with(visit, served, admin)
        table = page.locator(".usage table")
        expect(table.locator("tbody tr")).to_have_text(
            [f"{first_day(1)}anntiny:1b21,00040030", f"{first_day(3)}annother:2b11005"]
        )
        expect(table.locator("tfoot")).to_have_text("Sum31,01040035")
        page.get_by_label("Days").select_option("the last 30")
        page.get_by_label("Rows by").select_option("key")
        expect(table.locator("tbody tr")).to_have_text([f"{MARKUP}⟨U+202E⟩gnp.exe77007,000", "ann31,01040035"])
        assert page.locator("main img").count() == 0
        page = open_with(visit, served, use)
        expect(page.locator(".usage")).to_contain_text("What the requests of your key took")
        page.get_by_label("Days").select_option("the last 30")
        expect(page.locator(".usage tfoot")).to_have_text("Sum31,01040035")


@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (2560, "dark")])
def test_every_set_up_fits(visit: Visit, served: Served, width: int, scheme: str) -> None:
    tab = visit(served.url, viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = tab.open("#/connect")
    for client in documented():
        page.locator(".parts nav").get_by_role("link", name=client, exact=True).click()
        expect(page.get_by_role("heading", name=f"Set-up: {client}")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.violations() == []


def test_a_connection_that_is_back_shows_the_models_of_now(visit: Visit, served: Served) -> None:
    tab = visit(served.url)
    page = tab.open("#/connect/Zed")
    page.get_by_label("Model").select_option("other:2b")
    page.route("**/v1/models", lambda route: route.fulfill(json={"data": [{"id": "fresh"}, {"id": "other:2b"}]}))
    page.evaluate("dispatchEvent(new Event('back'))")
    expect(page.get_by_label("Model").locator("option")).to_have_text(["fresh", "other:2b"])
    expect(page.get_by_label("Model")).to_have_value("other:2b")  # what was chosen stays


def test_the_replay_uses_the_chosen_model(visit: Visit, serve: Serve) -> None:
    with serve() as served:
        page = visit(served.url).open("#/connect/aider")
        page.get_by_label("Model").select_option("other:2b")
        with page.expect_request("**/api/v1/replay") as asked:
            page.get_by_role("button", name="Send what aider sends").click()
        assert asked.value.post_data_json == {"client": "aider", "model": "other:2b"}
        page.get_by_role("button", name="Stop").or_(page.get_by_text("aider: ")).first.wait_for()
