"""The frame of the page: who gets it, the views, the key, the connection."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import expect

from locallab.keys import KeyStore
from locallab.server.page.routes import FOLDER, wants_page
from tests.support.browser import Tab
from tests.support.http_server import Serve, Served

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"
VIEWS = ("chat", "assistant", "models", "live", "connect")


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [(BROWSER, True), ("TEXT/HTML;q=0.5", True), ("*/*", False), ("", False), ("application/json", False), ("text/*", False)],
)
def test_only_those_that_name_html_get_the_page(accept: str, wanted: bool) -> None:
    assert wants_page(accept) is wanted


def test_a_browser_gets_the_page_and_others_what_they_got(served: Served) -> None:
    page = served.http.get("/", headers={"accept": BROWSER})
    assert page.headers["content-type"].startswith("text/html") and page.headers["vary"] == "Accept"
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert served.http.get("/", headers={"accept": "application/json"}).json()["service"] == "locallab"
    assert served.http.head("/", headers={"accept": BROWSER}).headers["content-type"].startswith("text/html")


def test_the_page_can_be_left_out(serve: Serve) -> None:
    with serve(page=False) as served:
        assert "text/html" not in served.http.get("/", headers={"accept": BROWSER}).headers["content-type"]
        assert served.http.get("/page/app.js").status_code == 404


def test_a_file_that_has_not_changed_is_not_sent_again(served: Served) -> None:
    first = served.http.get("/page/app.js")
    assert first.headers["content-type"].startswith("text/javascript")
    again = served.http.get("/page/app.js", headers={"if-none-match": first.headers["etag"]})
    assert again.status_code == 304


@pytest.mark.parametrize("name", ["routes.py", "__init__.py", "..%2froutes.py", "none.js", "index.html", "%00.js", "a%0a.js"])
def test_nothing_but_the_pages_own_files_is_served(served: Served, name: str) -> None:
    assert served.http.get(f"/page/{name}").status_code == 404


@pytest.mark.parametrize("view", ["live", "models", "connect"])
def test_the_styles_of_a_view_are_those_of_its_own_elements(view: str) -> None:
    first, *lines, last = (FOLDER / f"{view}.css").read_text().splitlines()
    assert (first, last) == (f".{view} {{", "}") and all(not line or line.startswith("  ") for line in lines)


def test_the_documentation_of_clients_is_served(served: Served) -> None:
    found = served.http.get("/page/clients.md")
    assert found.headers["content-type"].startswith("text/markdown") and found.headers["x-content-type-options"] == "nosniff"
    assert "\n## Set-ups\n" in found.text


def test_the_page_is_small_and_asks_nobody_else() -> None:
    files = [file for file in FOLDER.iterdir() if file.suffix in (".html", ".css", ".js", ".svg")]
    assert sum(file.stat().st_size for file in files) < 200_000
    texts = {file.name: file.read_text().replace("http://www.w3.org/2000/svg", "") for file in files}
    assert [name for name, text in texts.items() if re.search(r"https?://[a-z0-9]|innerHTML", text)] == []


def test_views_have_addresses_and_back_and_forward_work(visit: Callable[..., Tab], served: Served) -> None:
    tab = visit(served.url)
    page = tab.open()
    for view in VIEWS:
        page.locator("#views").get_by_role("link", name=view).click()
        expect(page).to_have_title(f"{view.capitalize()} · LocalLab")
    page.go_back()
    expect(page).to_have_title("Live · LocalLab")
    page.go_forward()
    expect(page).to_have_title("Connect · LocalLab")
    page.reload()
    expect(page).to_have_title("Connect · LocalLab")


def test_a_key_is_asked_for_once_refused_and_kept_for_the_tab(visit: Callable[..., Tab], serve: Serve, tmp_path: Path) -> None:
    _, key = KeyStore(tmp_path / "keys.json").create("ann", "pro", "use")
    with serve() as served:
        tab = visit(served.url)
        page = tab.page
        page.goto(tab.url)
        asked = page.get_by_role("dialog")
        asked.get_by_label("API key").fill("ll-wrong")
        page.keyboard.press("Enter")
        expect(asked.get_by_role("alert")).to_contain_text("not valid")
        asked.get_by_label("API key").fill(key)
        page.keyboard.press("Enter")
        expect(page.locator("#access")).to_contain_text("ann, use")
        page.reload()
        expect(page.locator("#access")).to_contain_text("ann, use")
        expect(asked).to_have_count(0)
        other = page.context.new_page()
        other.goto(tab.url)
        expect(other.get_by_role("dialog")).to_be_visible()  # another tab is asked again


def test_a_lost_connection_is_said_and_mended(visit: Callable[..., Tab], served: Served) -> None:
    tab = visit(served.url)
    page = tab.open("#/chat")
    page.route("**/health/live", lambda route: route.abort())
    page.route("**/api/v1/me", lambda route: route.abort())
    page.evaluate("import('./page/api.js').then((api) => api.get('/api/v1/me')).catch(() => {})")
    expect(page.locator("#notice")).to_contain_text("lost")
    page.unroute("**/health/live")
    expect(page.locator("#notice")).to_contain_text("back")


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (1280, "dark"), (2560, "light")])
def test_each_view_fits_and_has_nothing_against_it(
    visit: Callable[..., Tab], served: Served, view: str, width: int, scheme: str
) -> None:
    tab = visit(served.url, viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = tab.open(f"#/{view}")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.violations() == []


def test_the_access_of_a_key(serve: Serve, tmp_path: Path) -> None:
    with serve() as served:
        assert served.http.get("/api/v1/me").json() == {"key_required": False, "role": "admin", "key": None, "tier": None}
    _, key = KeyStore(tmp_path / "keys.json").create("ann", "pro", "use")
    with serve() as served:
        assert served.http.get("/api/v1/me").status_code == 401
        answer = served.http.get("/api/v1/me", headers={"authorization": f"Bearer {key}"})
        assert answer.json() == {"key_required": True, "role": "use", "key": "ann", "tier": "pro"}
        assert httpx.get(served.url, headers={"accept": BROWSER}).status_code == 200  # the page itself needs none
