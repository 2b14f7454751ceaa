"""Chromium, driven by Playwright: pages that keep a log of what they ask, say and get wrong."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--mute-audio",
)
PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome")
REQUIRED = "LOCALLAB_TEST_BROWSER"
"""Where this is set, a machine without Chromium fails the tests; elsewhere it skips them."""

PATIENCE = 20_000
"""Milliseconds that the page has for what is expected of it, on a busy machine."""

expect.set_options(timeout=PATIENCE)

WANTED = bool(os.environ.get(REQUIRED))


def program() -> str:
    """Return the path of a Chromium of this machine. Playwright's own is none that a distribution installs."""
    found = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if found is None:
        (pytest.fail if WANTED else pytest.skip)("there is no Chromium: install it, as by `apt-get install chromium`")
    return found


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    path = program()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


@dataclasses.dataclass
class Tab:
    """A page of a browser profile of its own. `requests` are the URLs it asked, `problems` what its console complained of."""

    page: Page
    url: str
    requests: list[str] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)

    def open(self, path: str = "") -> Page:
        """Go to a view, such as "#/models", and wait until it is shown."""
        self.page.goto(f"{self.url}/{path}")
        self.page.wait_for_selector("main .view > *", state="attached")
        return self.page

    def check(self) -> None:
        """Assert that the page asked nobody but its own server, and that nothing went wrong in it."""
        asked = {urlsplit(each) for each in self.requests}
        assert {each.netloc for each in asked if each.scheme not in ("blob", "data")} <= {urlsplit(self.url).netloc}
        assert self.problems == []

    def violations(self) -> list[str]:
        """Return what axe-core has to say against what is shown."""
        found: Any = Axe().run(self.page).response["violations"]
        return [f"{each['id']}: {node['html'][:200]}" for each in found for node in each["nodes"]]


@contextlib.contextmanager
def tab(browser: Browser, url: str, **options: Any) -> Iterator[Tab]:
    """Open a tab; `options` are those of playwright's new_context."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
    context.set_default_timeout(PATIENCE)
    found = Tab(context.new_page(), url)
    watch(found)
    yield found
    context.close()


def watch(found: Tab) -> None:
    found.page.on("request", lambda request: found.requests.append(request.url))
    found.page.on("pageerror", lambda error: found.problems.append(f"error: {error}"))
    # a refusal of the server is logged by the browser as an error too: that is no fault of the page
    found.page.on(
        "console",
        lambda message: (
            None
            if message.type != "error" or message.text.startswith("Failed to load resource")
            else found.problems.append(message.text)
        ),
    )
