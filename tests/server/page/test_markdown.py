"""Texts on the page: rendered as they grow, whatever they hold, however long they are."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

from locallab.server.page.highlight import KINDS
from tests.support.browser import Tab
from tests.support.http_server import Served

TEXT = """# Title

A *word* and `code`, see https://example.com/a_b.

- one
- two

  ```py
  x = 1
  ```

| a | b |
|---|--:|
| 1 | 2 |

```python
def f(x):
    return "text"  # note
```

> quote

1. end
"""

HARNESS = """async () => {
  const { Rendered } = await import("./page/markdown.js");
  const root = document.querySelector(".view");
  window.show = (text, done = true, options = {}) => {
    const element = document.createElement("div");
    root.replaceChildren(element);
    window.shown = new Rendered(element, options);
    shown.update(text, done);
    return element;
  };
  window.settled = async () => {
    for (;;) {
      await new Promise((resolve) => setTimeout(resolve, 20));
      if (!root.querySelector(".tail")) return root.firstChild;
    }
  };
}"""


@pytest.fixture
def page(visit: Callable[..., Tab], served: Served) -> Page:
    page = visit(served.url).open("#/assistant")
    page.evaluate(HARNESS)
    return page


def rendered(page: Page, text: str, **options: Any) -> str:
    """Show a text, and return its HTML once it is rendered."""
    script = "async ([text, options]) => { show(text, true, options); return (await settled()).innerHTML }"
    found: str = page.evaluate(script, [text, options])
    return found


def test_a_text_is_plain_at_once_and_then_rendered(page: Page) -> None:
    assert page.evaluate("text => show(text).textContent", TEXT) == TEXT
    view = page.locator(".markdown")
    expect(view.locator("h2.level-1")).to_have_text("Title")
    expect(view.get_by_role("link")).to_have_attribute("href", "https://example.com/a_b")
    expect(view.get_by_role("link")).to_have_attribute("rel", "noopener noreferrer nofollow")
    expect(view.locator("td.right")).to_have_text("2")
    expect(view.locator("pre").last.locator(".k").first).to_have_text("def")
    expect(view.locator(".tail")).to_have_count(0)


def test_a_block_of_code_is_copied_exactly(page: Page) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    rendered(page, "a\n```python\nif x:\n\ty = '\u202e<b>'\n\n```\n")
    expect(page.locator(".code-head bdi")).to_have_text("python")
    expect(page.locator(".hidden-character")).to_have_text("U+202E")
    page.get_by_role("button", name="Copy").click()
    expect(page.locator("#notice")).to_contain_text("copied")
    assert page.evaluate("navigator.clipboard.readText()") == "if x:\n\ty = '\u202e<b>'\n"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_each_kind_of_token_has_a_style_that_can_be_read(visit: Callable[..., Tab], served: Served, scheme: str) -> None:
    tab = visit(served.url, color_scheme=scheme)
    page = tab.open("#/assistant")
    page.evaluate(HARNESS)
    kinds = sorted(set(KINDS.values()))
    pieces = [{"tag": "span", "class": kind, "children": [f"{kind} text "]} for kind in ["none", "hidden-character", *kinds]]
    nodes = [{"tag": "pre", "language": "any", "children": [{"tag": "code", "children": pieces}]}]
    answer = json.dumps({"blocks": [{"line": 0, "nodes": nodes}]})
    page.route("**/api/v1/render", lambda route: route.fulfill(body=answer, content_type="application/json"))
    rendered(page, "x")
    looks = page.evaluate("""() => [...document.querySelectorAll("code span")].map((span) => {
      const { color, fontStyle, fontWeight } = getComputedStyle(span);
      return [color, fontStyle, fontWeight].join();
    })""")
    plain, *others = looks
    assert len(others) == len(kinds) + 1 and plain not in others
    assert [each for each in tab.violations() if "contrast" in each] == []


PIECES = [
    *("\n", "\n\n", "- ", "1. ", "> ", "# ", "```", "```py\n", "~~~", "    ", "  ", "|", "---", "*", "`", "x", "a b"),
    *("\n```\n", "[a](http://b)", "**", "_", "<b>", "&amp;", "\r\n", "| a | b |\n", "|---|---|\n", "word ", "line\n\n"),
    *("\u05d0", "\U0001f600"),
]

GROWING = """async ([text, cuts, options]) => {
  const element = show("", false, options);
  for (const cut of cuts) {
    shown.update(text.slice(0, cut));
    if (element.textContent.length > 3 * text.length) throw new Error(`more text than there is: ${element.textContent}`);
    if (cut % 3 === 0) await settled();
    else await new Promise((resolve) => setTimeout(resolve, cut % 5));
  }
  shown.update(text, true);
  await settled();
  return element.innerHTML;
}"""


def texts() -> Iterator[tuple[str, list[int]]]:
    chosen = random.Random(1)
    for count in (5, 10, 20, 40, 80):
        text = "".join(chosen.choice(PIECES) for _ in range(count))
        length = len(text.encode("utf-16-le")) // 2
        yield text, sorted(chosen.randint(0, length) for _ in range(4))
    yield "\n" * 20 + " " * 30 + "a", [30, 45]
    yield TEXT, [9, 21, 60, 77, 90, 121, 150, 199]


@pytest.mark.parametrize(("text", "cuts"), list(texts()))
def test_a_text_that_grows_ends_as_the_whole(page: Page, text: str, cuts: list[int]) -> None:
    whole = rendered(page, text)
    assert page.evaluate(GROWING, [text, cuts, {}]) == whole
    flat = whole.replace('</div><div class="window">', "")
    small = page.evaluate(GROWING, [text, cuts, {"soft": 12}])  # windows of a few lines
    assert small.replace('</div><div class="window">', "") == flat
    tiny = {"soft": 30, "most": 31}  # and those that are cut anywhere
    assert page.evaluate(GROWING, [text, cuts, tiny]) == rendered(page, text, **tiny)


def test_a_long_block_of_code_is_one_in_many_windows(page: Page) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    code = "".join(f"x{number} = '# no title'\n\n" for number in range(20))
    rendered(page, f"# a\n\n~~~python\n```\n{code}~~~\nb *c*\n", soft=20, most=100)
    assert page.locator(".window").count() > 5
    expect(page.locator(".code-head")).to_have_count(1)
    expect(page.locator("h2")).to_have_text("a")
    expect(page.locator("em")).to_have_text("c")
    assert "".join(page.locator("pre code").all_text_contents()) == f"```\n{code}"
    page.get_by_role("button", name="Copy").click()
    expect(page.locator("#notice")).to_contain_text("copied")
    assert page.evaluate("navigator.clipboard.readText()") == f"```\n{code}".removesuffix("\n")


def test_code_by_itself(page: Page) -> None:
    page.evaluate("""async () => {
      const { code } = await import("./page/markdown.js");
      document.querySelector(".view").replaceChildren(code("# *no title*", "python"), code("<b>", ""));
    }""")
    expect(page.locator("pre .c")).to_have_text("# *no title*")
    expect(page.locator("pre").last).to_have_text("<b>")


def test_what_was_rendered_is_remembered(page: Page) -> None:
    first = rendered(page, TEXT)
    page.route("**/api/v1/render", lambda route: route.abort())
    assert page.evaluate("text => show(text).innerHTML", TEXT) == first  # at once, with nothing asked


HOSTILE = """<script>window.ran = 1</script> <img src=x onerror="window.ran = 1"> <svg onload=window.ran=1>

[a](javascript:window.ran=1) [b](data:text/html,<script>window.ran=1</script>) <javascript:window.ran=1>
![c](http://other.invalid/c.png) [d](JAVASCRIPT:x)

```"><img src=x onerror=window.ran=1>
</code></pre><script>window.ran = 1</script>
```

|<b>|`<i>`|
|-|-|
|<script>|</td>|
"""


def test_hostile_texts_are_texts(page: Page) -> None:
    rendered(page, HOSTILE)
    view = page.locator(".markdown")
    for text in ("<script>window.ran = 1</script> <img", "[a](javascript:window.ran=1)", "</code></pre><script>", "</td>"):
        expect(view).to_contain_text(text)
    assert view.locator("script, img, svg, b, i").count() == 0
    assert [link.get_attribute("href") for link in view.locator("a").all()] == ["http://other.invalid/c.png"]
    assert page.evaluate("window.ran") is None


@pytest.mark.parametrize("nodes", [[{"tag": "script", "children": ["window.ran = 1"]}], [{"tag": "a", "href": "javascript:1"}]])
def test_the_page_makes_no_element_that_it_does_not_know(page: Page, nodes: Any) -> None:
    answer = json.dumps({"blocks": [{"line": 0, "nodes": nodes}]})
    page.route("**/api/v1/render", lambda route: route.fulfill(body=answer, content_type="application/json"))
    assert rendered(page, "x").count("<span") == 1
    assert page.evaluate("window.ran") is None


def test_a_refused_text_stays_plain_and_is_not_asked_again(page: Page) -> None:
    asked: list[Route] = []

    def refuse(route: Route) -> None:
        asked.append(route)
        route.fulfill(status=400, body='{"detail": "no"}')

    page.route("**/api/v1/render", refuse)
    with page.expect_response("**/api/v1/render"):
        page.evaluate("() => { show('# a', false) }")
    expect(page.locator(".markdown")).to_have_text("# a")
    page.evaluate("() => { for (const text of ['# ab', '# abc', '# abcd']) shown.update(text) }")
    expect(page.locator(".markdown")).to_have_text("# abcd")
    assert len(asked) == 1


def test_a_lost_connection_renders_later(page: Page) -> None:
    page.route("**/api/v1/render", lambda route: route.abort())
    page.evaluate("() => { show('# a', true) }")
    expect(page.locator("#notice")).to_contain_text("lost")
    expect(page.locator(".markdown")).to_have_text("# a")
    page.unroute("**/api/v1/render")
    page.evaluate("dispatchEvent(new Event('back'))")
    expect(page.locator(".markdown h2")).to_have_text("a")


def test_a_stream_asks_no_more_than_ten_times_a_second(page: Page) -> None:
    count = page.evaluate("""async () => {
      show("", false);
      const began = performance.now();
      let text = "";
      while (performance.now() - began < 1000) {
        shown.update((text += "word "));
        await new Promise((resolve) => setTimeout(resolve, 5));
      }
      return performance.getEntriesByType("resource").filter((each) => each.name.endsWith("/render")).length;
    }""")
    assert 2 <= count <= 11


@pytest.mark.parametrize(
    "text",
    [
        "word **bold** text\n\n" * 262_144,
        "x" * 5_000_000,
        "```python\n" + "value = 'text'\n" * 333_333 + "```\n\n# end\n",
    ],
    ids=["prose", "one line", "one block of code"],
)
def test_five_megabytes_do_not_freeze_the_page(page: Page, text: str) -> None:
    page.evaluate("text => { window.long = text }", text)
    longest = page.evaluate("""async () => {
      const element = show("", false);
      const view = document.querySelector(".view");
      let longest = 0;
      let last = performance.now();
      const watch = () => {
        longest = Math.max(longest, performance.now() - last);
        last = performance.now();
        watching = setTimeout(watch, 0);
      };
      let watching = setTimeout(watch, 0);
      for (let end = 0; end < long.length; end += 500_000) {
        shown.update(long.slice(0, end + 500_000), end + 500_000 >= long.length);
        await new Promise((resolve) => setTimeout(resolve));
      }
      await new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)));
      scrollTo(0, document.documentElement.scrollHeight / 2);
      await new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)));
      scrollTo(0, document.documentElement.scrollHeight);
      await new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)));
      clearTimeout(watching);
      return longest;
    }""")
    assert longest < 4000
    page.evaluate("document.querySelector('.markdown').lastElementChild.scrollIntoView()")
    expect(page.locator(".window").last.locator(".tail")).to_have_count(0)
