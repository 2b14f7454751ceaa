"""The view of the assistant's tasks: streams, findings, differences, and what was typed."""

from __future__ import annotations

import difflib
import json
import random
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from locallab.server.dialects.assistant.request import SEVERITIES
from tests.support.browser import Tab
from tests.support.fake_engine import say
from tests.support.http_server import Serve, Served, start_in
from tests.support.served_process import Process
from tests.support.wait import until

CODE = "import os\n\ndef total(items):\n    result = 0\n    for i in items:\n        result += i\n    return result\n"
NEW = "import os\n\ndef total(items):\n    return sum(items)\n"
HOSTILE = "<img src=x onerror='window.ran=1'>\u202e<script>window.ran=1</script>"


@pytest.fixture(scope="module")
def roomy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server whose engine takes long prompts, a byte being a token."""
    with start_in(tmp_path_factory.mktemp("roomy"))(engine={"context": 20_000}) as served:
        yield served


@pytest.fixture
def page(visit: Callable[..., Tab], roomy: Served) -> Page:
    roomy.engine.reset()
    return visit(roomy.url).open("#/assistant")


def ask(page: Page, task: str, source: str) -> None:
    page.get_by_label(task, exact=True).check(force=True)
    page.get_by_label("What to write" if task == "Generate" else "Code", exact=True).fill(source)
    page.get_by_role("button", name=task, exact=True).click()


def test_an_answer_streams_and_is_rendered(page: Page, roomy: Served) -> None:
    more = threading.Event()
    roomy.script(*say("Here it *is*:\n\n```python\nx = 1\n"), more, *say("y = 2\n```\n\nUse **it**.\n"))
    page.get_by_label("Language").fill("python")
    ask(page, "Generate", "Write two lines")
    result = page.get_by_role("region", name="Result")
    expect(result.locator("em")).to_have_text("is")
    expect(result).to_contain_text("Working")
    more.set()
    expect(result.locator("strong").last).to_have_text("it")
    expect(result.locator(".status")).to_contain_text("tiny:1b · 54 tokens")
    prompt, _ = roomy.engine.submitted[-1]
    assert "Write python." in prompt and "Write two lines" in prompt
    result.get_by_role("button", name="Go on with this code").click()
    expect(page.get_by_label("Code", exact=True)).to_have_value("x = 1\ny = 2")


def test_a_program_is_continued_as_code(page: Page, roomy: Served) -> None:
    roomy.script(*say("(x):\n    return '**x**'\n```"))
    page.get_by_label("Language").fill("python")
    ask(page, "Generate", "def f")
    expect(page.locator(".result pre")).to_have_text("def f(x):\n    return '**x**'")
    expect(page.locator(".result pre .nf")).to_have_text("f")


def test_code_without_fences_keeps_its_indentation(page: Page, roomy: Served) -> None:
    roomy.script(*say("def f(x):\n    return *x*\n"))
    ask(page, "Document", CODE)
    expect(page.locator(".result pre")).to_have_text("def f(x):\n    return *x*")


def test_an_answer_is_stopped(page: Page, roomy: Served) -> None:
    roomy.script(*say("some words"), threading.Event())
    ask(page, "Document", CODE)
    expect(page.locator(".result")).to_contain_text("some words")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".result")).to_contain_text("Stopped")
    expect(page.locator(".result")).to_contain_text("some words")
    expect(page.get_by_role("button", name="Document", exact=True)).to_be_focused()
    until(lambda: roomy.engine.cancelled)


def test_findings_come_one_by_one_and_lead_to_their_lines(page: Page, roomy: Served) -> None:
    findings = [
        {"title": f"One {HOSTILE}", "detail": HOSTILE, "line": 3, "severity": "critical", "fix": HOSTILE},
        {"title": "Two", "detail": "d", "line": None, "severity": "low", "fix": ""},
    ]
    whole = json.dumps({"findings": findings, "summary": HOSTILE})
    cut = whole.index('"Two') + 2
    more = threading.Event()
    roomy.script(*say(whole[:cut]), more, *say(whole[cut:]))
    ask(page, "Audit", CODE)
    shown = page.locator(".findings li")
    expect(shown).to_have_count(1)
    expect(shown).to_contain_text("critical")
    expect(shown).to_contain_text("<img src=x onerror='window.ran=1'>⟨U+202E⟩<script>")
    more.set()
    expect(shown).to_have_count(2)
    expect(page.locator(".summary")).to_contain_text("<script>window.ran=1</script>")
    shown.first.get_by_role("button", name="Line 3").click()
    selected = "() => { const a = document.activeElement; return a.value.slice(a.selectionStart, a.selectionEnd) }"
    assert page.evaluate(selected) == "def total(items):"
    assert page.evaluate("window.ran") is None and page.locator(".result :is(img, script)").count() == 0


def test_no_findings(page: Page, roomy: Served) -> None:
    roomy.script(*say('{"findings": [], "summary": "All is well."}'))
    ask(page, "Audit", CODE)
    expect(page.locator(".result")).to_contain_text("No findings. All is well.")


def test_a_diagnosis_with_its_fix_and_code(page: Page, roomy: Served) -> None:
    roomy.script(*say(json.dumps({"diagnosis": "It *adds*.", "fix": "Use `sum`.", "code": NEW})))
    ask(page, "Debug", CODE)
    result = page.locator(".result")
    expect(result.locator("em")).to_have_text("adds")
    expect(result.locator("code").first).to_have_text("sum")
    expect(result.locator("tr.added .line")).to_have_text("    return sum(items)")


def test_a_difference_is_shown_and_taken_over(page: Page, roomy: Served) -> None:
    roomy.script(*say(f"```python\n{NEW}```\n\n- It is *shorter*. {HOSTILE}\n"))
    ask(page, "Refactor", CODE)
    result = page.locator(".result")
    expect(result.locator("tr.removed")).to_have_count(4)
    expect(result.locator("tr.added")).to_have_count(1)
    expect(result.locator("h2").first).to_have_text(re.compile("^Changes [+]1 .4$"))
    expect(result.locator("em")).to_have_text("shorter")
    expect(result).to_contain_text("<script>window.ran=1</script>")
    result.get_by_text("The whole new code").click()
    expect(result.locator("details pre")).to_have_text(NEW.strip())
    result.get_by_role("button", name="Take over").click()
    code = page.get_by_label("Code", exact=True)
    expect(code).to_have_value(NEW.removesuffix("\n"))
    code.press("Control+z")
    expect(code).to_have_value(CODE)
    assert page.evaluate("window.ran") is None


def test_an_error_of_the_server_is_shown(page: Page, roomy: Served) -> None:
    ask(page, "Refactor", "x" * 30_000)
    expect(page.get_by_role("alert")).to_contain_text("context")
    roomy.script(*say("half "), RuntimeError("broken"))
    ask(page, "Refactor", CODE)
    expect(page.get_by_role("alert")).not_to_have_text("")
    expect(page.locator(".result")).to_contain_text("half")
    ask(page, "Refactor", " ")
    expect(page.locator("#notice")).to_contain_text("no code yet")


def test_what_was_typed_and_answered_survives(page: Page, roomy: Served) -> None:
    roomy.script(*say('{"findings": [], "summary": "Kept."}'))
    page.get_by_label("Language").fill("rust")
    page.get_by_label("Model").select_option("tiny:1b")
    ask(page, "Audit", CODE)
    expect(page.locator(".result")).to_contain_text("Kept.")
    page.get_by_label("Code", exact=True).type("# more")
    for leave in (page.reload, lambda: (page.goto(f"{roomy.url}/#/live"), page.go_back())):
        leave()
        expect(page.get_by_label("Audit", exact=True)).to_be_checked()
        expect(page.get_by_label("Code", exact=True)).to_have_value(f"{CODE}# more")
        expect(page.get_by_label("Language")).to_have_value("rust")
        expect(page.get_by_label("Model")).to_have_value("tiny:1b")
        expect(page.locator(".result")).to_contain_text("Kept.")


def test_the_editor_by_keyboard(page: Page) -> None:
    page.get_by_label("Refactor", exact=True).check(force=True)
    code = page.get_by_label("Code", exact=True)
    code.fill("a:\n\tb\n")
    code.press("Control+End")
    code.press("Tab")
    code.type("c")
    expect(code).to_have_value("a:\n\tb\n\tc")
    code.press("Escape")
    code.press("Tab")
    expect(page.get_by_role("button", name="Refactor", exact=True)).to_be_focused()
    expect(page.locator(".line-numbers")).to_have_text("1\n2\n3")


def test_files_are_opened_and_dropped(page: Page, tmp_path: Path) -> None:
    page.get_by_label("Audit", exact=True).check(force=True)
    code = page.get_by_label("Code", exact=True)
    named = tmp_path / "<b>x\u202e.py"
    named.write_text("x = 1\r\n")
    page.locator("input[type=file]").set_input_files(named)
    expect(code).to_have_value("x = 1\n")
    expect(page.get_by_label("Language")).to_have_value("python")
    expect(page.locator("#notice")).to_contain_text("<b>x⟨U+202E⟩.py is open")
    page.evaluate("""() => {
      const files = new DataTransfer();
      files.items.add(new File(["fn main() {}"], "main.rs"));
      const dropped = new DragEvent("drop", { dataTransfer: files, bubbles: true, cancelable: true });
      document.querySelector("textarea.code").dispatchEvent(dropped);
    }""")
    expect(code).to_have_value("fn main() {}")
    expect(page.get_by_label("Language")).to_have_value("rust")
    page.locator("input[type=file]").set_input_files({"name": "a.bin", "mimeType": "x/y", "buffer": b"a\0b"})
    expect(page.locator("#notice")).to_contain_text("a.bin is no text")
    expect(code).to_have_value("fn main() {}")


def test_the_view_has_nothing_against_it_with_answers(visit: Callable[..., Tab], roomy: Served) -> None:
    for width, scheme in ((360, "dark"), (1280, "light")):
        tab = visit(roomy.url, viewport={"width": width, "height": 800}, color_scheme=scheme)
        page = tab.open("#/assistant")
        finding = {"title": "x" * 100, "detail": "y" * 300, "line": 3, "severity": "medium", "fix": "z" * 300}
        answers = {
            "Audit": json.dumps({"findings": [{**finding, "severity": each} for each in SEVERITIES], "summary": "s"}),
            "Refactor": f"```python\n{NEW}{'long ' * 60}\n```\n\n# Notes\n\n|a||\n|-|-|\n|{'b' * 200}|c|\n",
        }
        for task, answer in answers.items():
            roomy.script(*say(answer, 50))
            ask(page, task, CODE)
            expect(page.locator(".status")).to_contain_text("tokens")
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert tab.violations() == []


DIFF = "pairs => import('./page/diff.js').then(({ lineDiff }) => pairs.map(([old, fresh]) => lineDiff(old, fresh)))"


def test_a_difference_leads_from_one_text_to_the_other(page: Page) -> None:
    chosen = random.Random(1)
    pieces = ["a", "b", "ab c", "x = 1", "x = 2", "", "  x = 1", "😀 a", "<b>"]
    texts = [["\n".join(chosen.choices(pieces, k=chosen.randint(0, 30))) for _ in range(2)] for _ in range(300)]
    for (old, fresh), rows in zip(texts, page.evaluate(DIFF, texts), strict=True):
        lines = ["".join(part for part, _ in row["parts"]) for row in rows]
        removed, added = ([line for line, row in zip(lines, rows, strict=True) if row["kind"] != side] for side in (1, -1))
        assert "\n".join(removed) == old and "\n".join(added) == fresh
        assert [row["old"] for row in rows if row["old"]] == list(range(1, len(removed) + 1))
        assert [row["fresh"] for row in rows if row["fresh"]] == list(range(1, len(added) + 1))
        same = sum(row["kind"] == 0 for row in rows)
        assert same >= sum(block.size for block in _matching(old, fresh))  # no longer than another way


def _matching(old: str, fresh: str) -> Any:
    return difflib.SequenceMatcher(None, old.split("\n"), fresh.split("\n"), autojunk=False).get_matching_blocks()


def test_words_that_changed_are_marked(page: Page) -> None:
    [rows] = page.evaluate(DIFF, [["a\nreturn old + 1\nz", "a\nreturn new + 1\nz"]])
    marks = [[part for part, changed in row["parts"] if changed] for row in rows]
    assert marks == [[], ["old"], ["new"], []]


def test_long_differences_are_bounded(page: Page) -> None:
    took = page.evaluate("""async () => {
      const { lineDiff } = await import("./page/diff.js");
      const lines = (word) => Array.from({ length: 50000 }, (_, index) => word + index % 7 + index).join("\\n");
      const began = performance.now();
      const rows = lineDiff("x\\n" + lines("a") + "\\ny", "x\\n" + lines("b") + "\\ny");
      lineDiff("a ".repeat(500000), "b ".repeat(500000));
      return [performance.now() - began, rows.filter((row) => !row.kind).length, rows.length];
    }""")
    assert took[0] < 10_000 and took[1:] == [2, 100_002]


def test_json_that_is_still_coming(page: Page) -> None:
    value: Any = {"a": [1, -2.5e3, True, None, 'x"\\\u00e9\n'], "b": {"c": "😀", "d": []}, "": "end"}
    texts = [json.dumps(value), json.dumps(value, ensure_ascii=False, indent=1)]
    script = """texts => import("./page/partial-json.js").then(({ partial }) => texts.map((text) => {
      const found = [];
      for (let end = 0; end <= text.length; end++) {
        const { value, depth } = partial(text.slice(0, end));
        found.push([value === undefined ? null : value, depth]);
      }
      return found;
    }))"""
    for states in page.evaluate(script, texts):
        assert states[-1] == [value, 0] and states[-2][1] == 1
        strings = [state["a"][4] for state, _ in states if state and len(state.get("a", [])) == 5]
        assert all(value["a"][4].startswith(each) for each in strings) and len(set(strings)) >= 4


def test_real_answers(visit: Callable[..., Tab], live: Process) -> None:
    page = visit(live.url).open("#/assistant")
    page.get_by_label("Language").fill("python")
    ask(page, "Generate", "def add(a, b):")
    expect(page.locator(".result pre").first).to_contain_text("def add(a, b):")
    expect(page.locator(".status")).to_contain_text("tokens/s", timeout=60_000)
    ask(page, "Audit", "import os\nos.system(input())\n")
    expect(page.locator(".status")).to_contain_text("tokens", timeout=100_000)


def test_a_server_without_a_model_says_so(visit: Callable[..., Tab], serve: Serve) -> None:
    with serve(load=None) as served:
        page = visit(served.url).open("#/assistant")
        ask(page, "Refactor", CODE)
        expect(page.get_by_role("alert")).to_contain_text("model")
