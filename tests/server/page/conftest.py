"""A browser for the tests of the page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from playwright.sync_api import Browser

from tests.support.browser import Tab, chromium, tab


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Tab]]:
    """Opens tabs of a server's page, each in a profile of its own; at the end they have asked no other origin, and nothing has
    gone wrong in them, unless they say `unchecked`."""
    with ExitStack() as open_tabs:
        tabs: list[Tab] = []

        def visiting(url: str, *, unchecked: bool = False, **options: Any) -> Tab:
            found = open_tabs.enter_context(tab(browser, url, **options))
            if not unchecked:
                tabs.append(found)
            return found

        yield visiting
        for each in tabs:
            each.check()
