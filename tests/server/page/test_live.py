"""The view Live: figures that move, who sees what, and a stream that is there only while somebody looks."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, Route, expect

from locallab.keys import KeyStore
from locallab.server.dialects.native import events
from tests.support.browser import Tab
from tests.support.http_server import Serve, Served
from tests.support.replicas import cluster_in
from tests.support.served_process import Process
from tests.support.wait import LONG_PATIENCE, until
from tests.support.watching import asking, noted_samplers

Visit = Callable[..., Tab]

MARKUP = "<img src=x onerror=hacked=1>"
OVERRIDE = "a\u202eb"
SOME = re.compile(r"^[\d,.]*[1-9][\d,.]*$")
TENS = re.compile(r"^[\d,]{2,}$")


@pytest.fixture
def samplers(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    return noted_samplers(monkeypatch)


def tile(page: Page, name: str) -> Any:
    return page.locator(".tile", has_text=name).locator(".figure")


def rows(page: Page) -> Any:
    return page.locator(".requests tbody tr")


def use(page: Page, key: str) -> None:
    page.add_init_script(f"sessionStorage.setItem('locallab-key', {json.dumps(key)})")


def send(page: Page, message: dict[str, Any]) -> None:
    """Let the stream be this message, again and again."""

    def fulfil(route: Route) -> None:
        route.fulfill(body=f"data: {json.dumps(message)}\n\n", content_type="text/event-stream")

    page.route("**/api/v1/events", fulfil)


def test_figures_move_while_a_request_runs(visit: Visit, live: Process) -> None:
    page = visit(live.url).open("#/live")
    expect(rows(page)).to_have_count(0)
    expect(page.locator(".requests")).to_contain_text("No requests.")
    body = {"prompt": "Write a long story about a robot", "n_predict": 3000, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{live.url}/completion", json=body, timeout=LONG_PATIENCE):  # cancelled once all is seen
        expect(rows(page)).to_contain_text("answering")
        expect(tile(page, "Running")).to_have_text("1")
        expect(tile(page, "Answers")).to_have_text(SOME)
        expect(tile(page, "Step")).to_contain_text("ms")
        answered = rows(page).locator("td").nth(4)
        expect(answered).to_have_text(TENS)
        expect(answered).not_to_have_text(answered.inner_text())
        expect(page.locator(".kv-legend li", has_text="Live").locator(".figure")).to_have_text(TENS)
        shown = page.locator(".kv-map i").evaluate_all("all => all.map((each) => each.style.backgroundImage)")
        assert any("live" in each for each in shown)
        expect(page.locator(".tile svg path").nth(2)).to_have_attribute("d", re.compile("^M.*L"))
    expect(rows(page)).to_have_count(0)
    expect(tile(page, "Running")).to_have_text("0")


def test_an_admin_sees_the_key_of_each_request(visit: Visit, serve: Serve, tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys.json")
    keys = {name: store.create(name, "free", role)[1] for name, role in ((MARKUP, "use"), ("bob", "use"), ("root", "admin"))}
    with serve() as served, asking(served, {"x-api-key": keys[MARKUP]}, {"x-api-key": keys["bob"]}):
        tabs = {name: visit(served.url) for name in keys}
        for name, tab in tabs.items():
            use(tab.page, keys[name])
            tab.open("#/live")
        root, bob = tabs["root"].page, tabs["bob"].page
        expect(root.locator(".requests th")).to_contain_text(["Model", "Key"])
        expect(rows(root)).to_have_count(2)
        expect(rows(root).filter(has_text=MARKUP)).to_have_count(1)
        expect(rows(bob)).to_have_count(1)
        expect(bob.locator(".requests th", has_text="Key")).to_have_count(0)
        expect(bob.locator(".requests")).to_contain_text("1 of other keys.")
        expect(tile(bob, "Running")).to_have_text("2")
        assert MARKUP not in bob.content() and "hacked" not in bob.content()
        assert root.locator("main img").count() == 0 and not root.evaluate("window.hacked")
        assert tabs["root"].violations() == []


def test_names_and_errors_from_elsewhere_are_text(visit: Visit, served: Served) -> None:
    [message] = [json.loads(line[6:]) for line in _first(served)]
    request = {
        "id": 7,
        "model": MARKUP + OVERRIDE,
        "key": "<script>hacked=1</script>",
        "state": "prefill",
        "prompt_tokens": 4000,
        "cached_tokens": 1000,
        "computed_tokens": 2500,
        "answer_tokens": 0,
        "age_seconds": 3.21,
        "ttft_seconds": None,
    }
    model = {**message["models"][0], "name": "x" * 300 + MARKUP}
    embedder = {**model, "name": OVERRIDE, "kind": "embedding", "kv": None}
    gpu = {"name": "<b>A100</b>", "total_bytes": 80 << 30, "free_bytes": 60 << 30, "load_percent": 12}
    message |= {
        "running": 3,
        "requests": [request],
        "models": [model, embedder],
        "loading": [{"name": f"{MARKUP} loads", "waiting": 2}],
        "failed": {"javascript:hacked=1": f"{MARKUP}{OVERRIDE} has failed"},
        "memory": {**message["memory"], "gpus": [gpu]},
    }
    tab = visit(served.url, viewport={"width": 360, "height": 800})
    send(tab.page, message)
    page = tab.open("#/live")
    expect(rows(page)).to_contain_text("reading 62%")
    for text in (
        MARKUP,
        "⟨U+202E⟩",
        "javascript:hacked=1",
        f"{MARKUP} loads",
        "2 requests wait",
        "<b>A100</b> at 12%",
        "2 more.",
    ):
        expect(page.locator("main")).to_contain_text(text)
    expect(page.locator(".model").nth(1)).to_contain_text("embedding")
    expect(page.locator(".model").nth(1).locator(".kv-map")).to_have_count(0)
    expect(page.get_by_role("row", name="A100")).to_contain_text("20 GiB")
    assert "\u202e" not in page.locator("main").inner_text()
    assert page.locator("main img, main script, main b").count() == 0 and not page.evaluate("window.hacked")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert tab.violations() == []


def _first(served: Served) -> list[str]:
    with served.http.stream("GET", "/api/v1/events") as response:
        return [next(line for line in response.iter_lines() if line.startswith("data: "))]


def test_the_map_says_in_words_what_it_shows(visit: Visit, served: Served) -> None:
    [message] = [json.loads(line[6:]) for line in _first(served)]
    buckets = [[64, 0, 0], [10, 20, 34], [0, 0, 0], [0, 0, 64]]
    kv = {"layout": "streams", "cells": 256, "live": 74, "shared": 20, "idle": 98, "free": 64, "streams": 2}
    message["models"][0]["kv"] = {**kv, "bucket_cells": 64, "buckets": buckets}
    tab = visit(served.url)
    send(tab.page, message)
    page = tab.open("#/live")
    summary = "Cells of the KV cache: 74 live, 20 shared, 98 idle, 64 free"
    expect(page.get_by_role("img", name=summary)).to_be_visible()
    expect(page.locator(".kv-legend li")).to_contain_text(["74", "20", "98", "64"])
    expect(page.locator(".kv-map > div")).to_have_count(2)
    shown = page.locator(".kv-map i").evaluate_all("all => all.map((each) => each.style.backgroundImage)")
    assert "var(--kv-live) 0%, var(--kv-live) 100%" in shown[0] or "var(--kv-live) 0% 100%" in shown[0]
    assert all(f"var(--kv-{held})" in shown[1] for held in ("live", "shared", "idle")) and shown[2] in ("", "none")
    colours = page.locator(".swatch").evaluate_all("all => all.map((each) => getComputedStyle(each).backgroundColor)")
    assert len(set(colours)) == 4
    assert page.locator(".live [aria-live], .live [role=status], .live [role=log]").count() == 0


def test_without_a_model_it_says_what_it_needs(visit: Visit, serve: Serve) -> None:
    with serve(load=None) as served:
        page = visit(served.url).open("#/live")
        expect(page.get_by_role("link", name="Go to the models")).to_have_attribute("href", "#/models")
        served.pool.load_now("tiny:1b")
        expect(page.locator(".model h2")).to_have_text("tiny:1b")
        expect(page.locator(".said")).to_be_empty()
        served.engine.die()
        expect(page.locator(".said")).to_contain_text("broken")
        expect(page.locator(".model")).to_have_count(0)


def test_the_stream_is_there_only_while_somebody_looks(visit: Visit, serve: Serve, samplers: list[Any]) -> None:
    with serve() as served:
        page = visit(served.url).open("#/live")
        [sampler] = samplers
        expect(page.locator(".model")).to_be_visible()
        assert sampler.works

        def hide(hidden: bool) -> None:
            page.evaluate("(value) => Object.defineProperty(document, 'hidden', {value, configurable: true})", hidden)
            page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")

        hide(True)
        until(lambda: not sampler.works)
        hide(False)
        until(lambda: sampler.works)
        page.get_by_role("link", name="Connect").click()
        until(lambda: not sampler.works)
        page.go_back()
        expect(page.locator(".model")).to_be_visible()
        assert sampler.works


def test_a_stream_that_is_lost_is_taken_up_again(visit: Visit, served: Served) -> None:
    page = visit(served.url).page
    page.route("**/api/v1/events", lambda route: route.abort())
    page.goto(f"{served.url}/#/live")
    expect(page.locator("#notice")).to_contain_text("lost")
    expect(page.locator(".model")).to_have_count(0)
    page.unroute("**/api/v1/events")
    expect(page.locator(".model")).to_be_visible()
    with asking(served, None):
        expect(rows(page)).to_have_count(1)


def test_a_refusal_is_shown_with_a_way_on(visit: Visit, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MOST_EACH", 0)
    with serve() as served:
        tab = visit(served.url)
        page = tab.open("#/live")
        expect(page.get_by_role("alert")).to_contain_text("watch already")
        assert tab.violations() == []
        monkeypatch.setattr(events, "MOST_EACH", 8)
        page.get_by_role("button", name="Try again").press("Enter")
        expect(page.locator(".model")).to_be_visible()
        expect(page.get_by_role("alert")).to_be_empty()


def test_what_is_equal_stays_when_a_view_is_drawn_again(visit: Visit, served: Served) -> None:
    found = (
        visit(served.url)
        .open("#/connect")
        .evaluate(
            """Promise.all([import('./page/morph.js'), import('./page/dom.js')]).then(([{ morph }, { h }]) => {
            const items = (words) => words.map((each) => h("li", {}, each));
            const draw = (kind, ...words) => h("div", {}, h("p", { class: kind }), h("ul", {}, items(words)));
            const shown = draw("a", "same", "old", "more");
            const [p, list] = shown.children;
            const first = list.firstChild;
            morph(shown, draw("b", "same", "new"));
            return [shown.outerHTML, shown.firstChild !== p, shown.lastChild === list, list.firstChild === first];
        })"""
        )
    )
    assert found == ['<div><p class="b"></p><ul><li>same</li><li>new</li></ul></div>', True, True, True]


def test_curves_and_buckets(visit: Visit, served: Served) -> None:
    page = visit(served.url).open("#/connect")

    def path(points: list[list[float]]) -> Any:
        return page.evaluate("(points) => import('./page/sparkline.js').then((m) => m.path(points))", points)

    assert path([]) == {"d": "", "most": 0}
    assert path([[40, 0], [70, 5], [73, 10], [100, 0]]) == {"d": "M0.0 27.0M60.0 14.0L66.0 1.0M120.0 27.0", "most": 10}
    assert path([[10, 99], [100, 1]])["most"] == 1  # what is older than a minute is gone

    def background(bucket: list[int], size: int) -> Any:
        return page.evaluate("([b, n]) => import('./page/kv-map.js').then((m) => m.background(b, n))", [bucket, size])

    assert background([0, 0, 0], 64) == ""
    assert "var(--kv-idle) 0% 100%" in background([0, 0, 64], 64)
    assert "var(--kv-live) 0% 8%" in background([1, 0, 0], 1000)


def test_replicas_of_a_cluster_are_shown(visit: Visit, tmp_path: Path) -> None:
    with cluster_in(tmp_path) as cluster:
        cluster.http.post("/v1/completions", json={"prompt": "a question of some length, " * 10})
        page = visit(cluster.url).open("#/live")
        table = page.get_by_role("region", name="Replicas")
        for replica in ("r0", "r1"):
            expect(table.get_by_role("row", name=f"{replica} 127.0.0.1 tiny:1b")).to_be_visible()
            expect(page.locator(".model").filter(has_text=replica)).to_be_visible()
        held = threading.Event()
        cluster.script(held)
        asking = threading.Thread(target=cluster.http.post, args=("/v1/completions",), kwargs={"json": {"prompt": "hi"}})
        asking.start()
        expect(rows(page)).to_contain_text(re.compile(r"#\d+ r[01]"))
        held.set()
        asking.join()
