"""A drive through the views of the page, each with something in it, for tests of how they look and for pictures."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from playwright.sync_api import Page, expect

from tests.support.wait import LONG_PATIENCE

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


def assistant(page: Page) -> None:
    """Have a program continued."""
    page.get_by_label("Language").fill("python")
    page.get_by_label("What to write").fill("def is_prime(n):")
    page.get_by_role("button", name="Generate", exact=True).click()
    expect(page.locator(".status")).to_contain_text("tokens/s", timeout=LONG_PATIENCE * 1000)
    expect(page.locator(".tail")).to_have_count(0)


def live(page: Page) -> None:
    """Let the server work for several at once, with a beginning that they share, for long enough to see curves. A browser has
    six connections to a server, and one is the view's."""
    page.evaluate(
        """(question) => {
            const system = "You are a careful assistant, who answers in full sentences and explains each step. ".repeat(20);
            for (let n = 1; n <= 5; n++) {
                const messages = [{ role: "system", content: system }, { role: "user", content: `${question} (${n})` }];
                const body = JSON.stringify({ messages, max_tokens: 400 + 40 * n, ignore_eos: true });
                fetch("v1/chat/completions", { method: "POST", headers: { "Content-Type": "application/json" }, body });
            }
        }""",
        QUESTION,
    )
    expect(page.locator(".requests tbody tr", has_text="answering")).to_have_count(5)
    age = page.locator(".requests tbody td:last-child").first
    expect(age).to_have_text(re.compile(r"^(1[5-9]|[2-9]\d)\."), timeout=LONG_PATIENCE * 1000)


def models(page: Page) -> None:
    """Look at the details of the model that is loaded."""
    page.get_by_role("button", name="Details").first.click()
    expect(page.locator("tr.details:visible")).to_contain_text("How it fits here")
    expect(page.locator("tr.details:visible")).to_contain_text("Chat template")


def connect(page: Page) -> None:
    """Replay a client."""
    page.get_by_role("navigation", name="Clients").get_by_role("link", name="openai-python").click()
    page.get_by_role("button", name="Send what openai-python sends").click()
    expect(page.locator(".replay [role=status]")).to_contain_text("0 failed", timeout=120_000)


TOUR: Mapping[str, Callable[[Page], None]] = {
    "chat": chat,
    "assistant": assistant,
    "models": models,
    "live": live,
    "connect": connect,
}
"""What fills each view, once it is open."""
