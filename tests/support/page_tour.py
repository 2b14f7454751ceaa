"""A drive through the views of the page, each with something in it, for tests of how they look and for pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from playwright.sync_api import Page, expect

QUESTION = "Write a Python function that adds two numbers, with an example."


def chat(page: Page) -> None:
    """Ask a question, as one would."""
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Temperature").first.fill("0")
    page.get_by_label("Max tokens").fill("200")
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("textbox", name="Message").fill(QUESTION)
    page.keyboard.press("Enter")
    expect(page.locator("article.message.assistant .stats")).to_contain_text("tokens")
    expect(page.locator(".tail")).to_have_count(0)  # what the server has not rendered yet


TOUR: Mapping[str, Callable[[Page], None]] = {"chat": chat}
"""What fills each view, once it is open."""
