"""The view "models"."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from locallab.errors import SourceError
from locallab.keys import KeyStore
from locallab.models import Registry
from locallab.models.store import Store
from tests.support import hub_server, tiny_gguf
from tests.support.browser import Tab
from tests.support.http_server import Serve, Served
from tests.support.hub_server import Hub, Repo
from tests.support.served_process import serving

Visit = Callable[..., Tab]
MARKUP = "<script>document.title='ran'</script><img src=x onerror=\"document.title='ran'\">"
REVERSED = "\u202egnp.exe"
LONG = "x" * 300


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A Hub with a real model, whose download stops in the middle until `hold` is set."""
    weights = tiny_gguf.write(tmp_path / "tiny.gguf", "llama").read_bytes()
    with hub_server.serve(Hub({"acme/tiny": Repo({"tiny-Q8_0.gguf": weights})}, hold=threading.Event())) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


def row(page: Page, model: str) -> Locator:
    return page.locator("tr.model").filter(has=page.locator("bdi", has_text=model))


def register(served: Served, folder: Path, **entries: Any) -> None:
    """Add the entries of a registry file, by id, to the server's registry."""
    file = folder / "more.yaml"
    file.write_text(json.dumps({"models": [{"id": id.replace("__", ":"), **entry} for id, entry in entries.items()]}))
    for spec in Registry.load(file):
        served.pool.registry.add("a test", spec)


def of_the_hub(**more: Any) -> dict[str, Any]:
    return {"description": "a model", "source": {"kind": "hub", "repo": "acme/tiny", "file": "tiny.gguf"}, **more}


def with_key(tab: Tab, key: str) -> Tab:
    tab.page.add_init_script(f"sessionStorage.setItem('locallab-key', '{key}')")
    return tab


def test_a_model_of_the_hub_is_pulled_loaded_and_deleted(visit: Visit, hub: Hub, model_path: Path) -> None:
    """With the real engine."""
    assert hub.hold
    with serving(model_path, "--context", "512") as process:
        page = visit(process.url).open("#/models")
        page.get_by_label("A model of the Hugging Face Hub").fill("hf:acme/tiny:Q8_0")
        page.keyboard.press("Enter")
        card = page.locator(".jobs .card")
        expect(card).to_contain_text("Pulling hf:acme/tiny:Q8_0")
        expect(card).to_contain_text(" of 730 KiB")
        assert float(card.get_by_role("progressbar").get_attribute("value") or 0) > 0
        page.locator("#views").get_by_role("link", name="connect").click()  # the download goes on meanwhile
        expect(page.get_by_role("heading", name="Connect", exact=True)).to_be_visible()
        page.locator("#views").get_by_role("link", name="models").click()
        expect(card).to_contain_text("Pulling hf:acme/tiny:Q8_0")
        hub.hold.set()
        expect(page.locator("#notice")).to_contain_text("hf:acme/tiny:Q8_0 is on disk.")
        tiny = row(page, "acme--tiny:Q8_0")
        tiny.get_by_role("button", name="Load").click()
        expect(page.locator("#notice")).to_contain_text("acme--tiny:Q8_0 is loaded.")
        expect(tiny).to_contain_text("current")
        tiny.get_by_role("button", name="Details").click()
        details = page.locator("tr.details:visible")
        expect(details).to_contain_text("acme/tiny")
        expect(details).to_contain_text("on the CPU, context 512")
        expect(details).to_contain_text("Chat template")
        tiny.get_by_role("button", name="Delete").click()
        page.get_by_role("dialog").get_by_role("button", name="Delete").click()
        expect(page.locator("#notice")).to_contain_text("acme--tiny:Q8_0 is deleted.")
        expect(tiny.get_by_role("button", name="Pull")).to_be_visible()
        expect(tiny).not_to_contain_text("loaded")


def test_one_request_lists_what_fits_in_groups(visit: Visit, serve: Serve, tmp_path: Path) -> None:
    with serve() as served:
        register(
            served, tmp_path, small=of_the_hub(size=10**8, license="mit", recommended=["gpu-8"]), large=of_the_hub(size=10**12)
        )
        tab = visit(served.url)
        page = tab.open("#/models")
        groups = page.locator("tr.group")
        expect(groups).to_have_text(["Loaded 1", "On disk 2", "To be fetched, fit here 1", "Do not fit here 1"])
        assert len([each for each in tab.requests if "/models/" in each]) == 1
        expect(row(page, "tiny:1b")).to_contain_text("current")
        expect(row(page, "small")).to_contain_text("mit · for 8 GB of GPU")
        expect(row(page, "large")).to_contain_text("does not fit: even on the CPU")
        page.get_by_label("Search").fill("MIT model")
        expect(page.locator("tr.model")).to_have_count(1)
        page.get_by_label("Search").fill("loaded")  # what is said of a model is found too
        expect(page.locator("tr.model")).to_have_count(1)
        expect(row(page, "tiny:1b")).to_be_visible()
        page.get_by_label("Search").fill("nothing like that")
        expect(page.get_by_text("No model is like that.")).to_be_visible()


def test_failures_are_shown_with_their_reason(visit: Visit, serve: Serve, tmp_path: Path) -> None:
    def fetch(spec: Any, store: Store, progress: Any) -> Path:
        if spec.id == "gone":
            raise SourceError(f"{MARKUP}{REVERSED}: no such repository")
        return store.path(spec) or Path("none")

    with serve(pool={"fetch": fetch}) as served:
        register(served, tmp_path, gone=of_the_hub(size=10))
        page = visit(served.url).open("#/models")
        row(page, "gone").get_by_role("button", name="Pull").click()
        card = page.locator(".jobs .card")
        expect(card.get_by_role("alert")).to_have_text(f"{MARKUP}⟨U+202E⟩gnp.exe: no such repository")
        card.get_by_role("button", name="Dismiss").click()
        expect(card).to_have_count(0)
        row(page, "broken:3b").get_by_role("button", name="Load").click()
        expect(card.get_by_role("alert")).to_contain_text("not a GGUF file")
        expect(row(page, "broken:3b")).to_contain_text("failed")
        expect(row(page, "broken:3b")).to_contain_text("The last load failed: cannot load")
        row(page, "tiny:1b").get_by_role("button", name="Delete").click()
        page.get_by_role("dialog").get_by_role("button", name="Keep it").click()
        assert served.pool.status("tiny:1b") == "ready"
        row(page, "tiny:1b").get_by_role("button", name="Delete").click()
        page.get_by_role("dialog").get_by_role("button", name="Delete").click()
        expect(card.filter(has_text="tiny:1b").get_by_role("alert")).to_contain_text("delete it yourself")


def test_a_pull_is_cancelled_and_the_view_says_what_stays(visit: Visit, serve: Serve, tmp_path: Path) -> None:
    ended, more = threading.Event(), threading.Event()

    def fetch(spec: Any, store: Any, progress: Any) -> Path:
        try:
            while True:
                progress(2**20, 4 * 2**20)
                more.wait(0.01)
        finally:
            ended.set()

    with serve(pool={"fetch": fetch}, load=None) as served:
        register(served, tmp_path, slow=of_the_hub(size=10))
        tab = visit(served.url)
        page = tab.open("#/models")
        row(page, "slow").get_by_role("button", name="Pull").click()
        card = page.locator(".jobs .card")
        expect(card).to_contain_text("1 MiB of 4 MiB")
        expect(row(page, "slow").get_by_role("button", name="Pull")).to_be_disabled()
        assert tab.violations() == []
        card.get_by_role("button", name="Cancel").click()
        expect(page.locator("#notice")).to_contain_text("What has been fetched is kept")
        expect(card).to_have_count(0)
        assert ended.wait(20)


def test_only_an_admin_sees_what_only_an_admin_may_do(visit: Visit, serve: Serve, tmp_path: Path) -> None:
    keys = KeyStore(tmp_path / "keys.json")
    with serve() as served:
        for role, sees in (("use", 0), ("admin", 2)):
            page = with_key(visit(served.url), keys.create(role, "free", role)[1]).open("#/models")
            tiny = row(page, "tiny:1b")
            expect(tiny.get_by_role("button", name="Details")).to_be_visible()
            expect(tiny.get_by_role("button", name="Unload").or_(tiny.get_by_role("button", name="Delete"))).to_have_count(sees)
            expect(page.get_by_label("A model of the Hugging Face Hub")).to_be_visible(visible=sees > 0)


def test_hostile_texts_stay_texts(visit: Visit, serve: Serve, tmp_path: Path) -> None:
    entry = of_the_hub(size=10, license="javascript:alert(1)", system=f"{MARKUP}{REVERSED}", settings={"chat_template": MARKUP})
    with serve() as served:
        register(served, tmp_path, evil={**entry, "description": f"{MARKUP}{REVERSED} {LONG}"}, **{LONG: of_the_hub(size=10)})
        tab = visit(served.url, viewport={"width": 360, "height": 800})
        page = tab.open("#/models/evil")
        evil = row(page, "evil")
        expect(evil).to_contain_text(f"{MARKUP}⟨U+202E⟩gnp.exe")
        expect(evil).to_contain_text("javascript:alert(1)")
        expect(page.locator("tr.details:visible")).to_contain_text(f"System prompt{MARKUP}⟨U+202E⟩gnp.exe")
        expect(row(page, LONG)).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        assert page.locator("main :is(script, img, a)").count() == 0
        expect(page).to_have_title("Models · LocalLab")


@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (2560, "light")])
def test_details_and_dialogs_have_nothing_against_them(visit: Visit, served: Served, width: int, scheme: str) -> None:
    tab = visit(served.url, viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = tab.open("#/models/tiny:1b")
    expect(page.locator("tr.details:visible")).to_contain_text("How it fits here")
    expect(page.locator("tr.details:visible table")).to_be_visible()
    assert tab.violations() == [] and page.evaluate("document.documentElement.scrollWidth") <= width
    row(page, "other:2b").get_by_role("button", name="Delete").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    assert tab.violations() == []


def test_the_keyboard_alone_opens_details(visit: Visit, served: Served) -> None:
    tab = visit(served.url)
    page = tab.open("#/models")
    details = row(page, "tiny:1b").get_by_role("button", name="Details")
    details.focus()
    page.keyboard.press("Enter")
    expect(details).to_have_attribute("aria-expanded", "true")
    expect(page.locator("tr.details:visible")).to_contain_text("Takes now")
    asked = len(tab.requests)
    page.get_by_label("Search").press_sequentially("tiny")
    expect(page.locator("tr.model")).to_have_count(1)
    expect(page.locator("tr.details:visible")).to_contain_text("Takes now")
    assert len(tab.requests) == asked, "what is open is not asked for again"
    details.focus()
    page.keyboard.press("Space")
    expect(page.locator("tr.details:visible")).to_have_count(0)


def test_a_connection_that_is_back_shows_the_models_again(visit: Visit, served: Served) -> None:
    page = visit(served.url).open("#/models")
    page.route("**/models/available*", lambda route: route.abort())
    page.get_by_role("button", name="Read again").click()
    expect(page.locator("#notice")).to_contain_text("lost")
    page.unroute("**/models/available*")
    with page.expect_response("**/models/available*"):
        expect(page.locator("#notice")).to_contain_text("back")
    expect(row(page, "tiny:1b")).to_be_visible()
