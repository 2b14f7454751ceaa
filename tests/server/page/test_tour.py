"""Each view with something in it, on screens of all sizes: the drive of which scripts/page-pictures takes pictures."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import expect

from locallab.server.page.routes import FOLDER
from tests.support.browser import Tab
from tests.support.page_tour import TOUR
from tests.support.served_process import Process


def test_each_view_is_in_the_tour() -> None:
    views = [line.split(":")[0].strip() for line in (FOLDER / "app.js").read_text().splitlines() if "() => import(" in line]
    assert list(TOUR) == views


@pytest.mark.parametrize("view", TOUR)
def test_a_full_view_fits_and_has_nothing_against_it(visit: Callable[..., Tab], live: Process, view: str) -> None:
    tab = visit(live.url)
    page = tab.open(f"#/{view}")
    TOUR[view](page)
    for width, scheme in ((360, "dark"), (768, "light"), (2560, "dark")):
        page.set_viewport_size({"width": width, "height": 800})
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        expect(page.locator("#main")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert tab.violations() == []
