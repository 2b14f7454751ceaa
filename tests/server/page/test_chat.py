"""The view Chat, driven in a browser."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.support.browser import Tab
from tests.support.dialect_requests import RAW, TEMPLATE
from tests.support.fake_engine import detokenize, say
from tests.support.http_server import Serve, Served
from tests.support.served_process import Process
from tests.support.wait import until

Visit = Callable[..., Tab]

HOSTILE = (
    "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script> [a](javascript:alert(1)) \u202egnp"
)


def ask(page: Page, text: str) -> None:
    page.get_by_role("textbox", name="Message").fill(text)
    page.keyboard.press("Enter")


def answers(page: Page) -> Any:
    return page.locator("article.message.assistant")


def ready(page: Page) -> None:
    """Wait until nothing is being answered."""
    expect(page.get_by_role("button", name="Send", exact=True)).to_be_visible()


def body(served: Served, at: int = -1) -> str:
    prompt, _ = served.engine.submitted[at]
    return prompt


def test_an_answer_streams_and_its_figures_are_shown(visit: Visit, live: Process) -> None:
    tab = visit(live.url)
    page = tab.open()
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Max tokens").fill("40")
    ask(page, "What is the sea?")
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    ready(page)
    answer = answers(page)
    assert len(answer.locator(".content").inner_text()) > 10
    stats = answer.locator(".stats").inner_text()
    assert re.search(r"tokens/s · first token after .* · \d+ of \d+ prompt tokens cached \(the rest: .*\) · \d+ tokens", stats)
    ask(page, "And the sky?")
    ready(page)
    cached = re.search(r"(\d+) of (\d+) prompt tokens cached", answers(page).nth(1).locator(".stats").inner_text())
    assert cached and int(cached[1]) > 30
    expect(page.get_by_role("link", name="What is the sea?")).to_have_attribute("aria-current", "page")
    assert tab.violations() == []


def test_a_schema_holds_and_a_wrong_one_is_said(visit: Visit, live: Process) -> None:
    page = visit(live.url).open()
    page.get_by_role("button", name="Settings").click()
    page.get_by_text("Answer in this JSON schema").first.click()
    schema = page.get_by_role("textbox", name="Answer in this JSON schema")
    schema.fill('{"type": ')
    expect(page.get_by_role("alert")).to_contain_text("This is no JSON")
    ask(page, "How old is Ann?")
    expect(page.locator("#notice")).to_contain_text('"Answer in this JSON schema" is not right yet')
    assert answers(page).count() == 0
    schema.fill(json.dumps({"type": "object", "properties": {"age": {"type": "integer", "maximum": 99}}, "required": ["age"]}))
    page.get_by_role("textbox", name="Message").press("Enter")
    ready(page)
    assert type(json.loads(answers(page).locator(".content").inner_text())["age"]) is int
    schema.fill('{"type": "no such type"}')
    ask(page, "Again")
    expect(answers(page).nth(1).locator(".state")).to_contain_text("no such type")


def test_a_stopped_answer_keeps_its_text_and_goes_on(visit: Visit, thinking: Served) -> None:
    rest = threading.Event()
    thinking.script(*say("One, two, "), rest)
    page = visit(thinking.url).open()
    ask(page, "Count")
    expect(answers(page)).to_contain_text("One, two,")
    page.get_by_role("textbox", name="Message").press("Escape")
    expect(answers(page).locator(".state")).to_have_text("Stopped.")
    until(lambda: thinking.engine.cancelled)
    thinking.script(*say("three."))
    page.get_by_role("button", name="Continue").click()
    expect(answers(page).locator(".content")).to_have_text("One, two, three.")
    assert body(thinking).endswith("<assistant>One, two, ")
    rest.set()


def test_answers_and_edits_are_branches_with_arrows_between_them(visit: Visit, thinking: Served) -> None:
    thinking.engine.script = lambda prompt, params: say(f"answer {len(thinking.engine.submitted) + 1}")
    page = visit(thinking.url).open()
    ask(page, "first wording")
    expect(answers(page)).to_contain_text("answer 1")
    page.get_by_role("button", name="Answer again").click()
    expect(answers(page)).to_contain_text("answer 2")
    expect(answers(page).locator(".branch")).to_have_text("2 of 2")
    answers(page).get_by_role("button", name="Earlier branch").click()
    expect(answers(page)).to_contain_text("answer 1")
    page.get_by_role("button", name="Edit").click()
    page.get_by_label("Edit your message").fill("second wording")
    page.locator("form.editing").get_by_role("button", name="Send").click()
    expect(answers(page)).to_contain_text("answer 3")
    assert "first wording" not in body(thinking)
    question = page.locator("article.message.user")
    question.get_by_role("button", name="Earlier branch").click()
    expect(question).to_contain_text("first wording")
    expect(answers(page)).to_contain_text("answer 1")
    page.reload()
    expect(answers(page)).to_contain_text("answer 1")


def test_a_reload_in_mid_stream_keeps_what_came(visit: Visit, thinking: Served) -> None:
    rest = threading.Event()
    thinking.script(*say("This much came."), rest)
    page = visit(thinking.url).open()
    ask(page, "Tell")
    expect(answers(page)).to_contain_text("This much came.")
    page.reload()
    expect(answers(page).locator(".content")).to_have_text("This much came.")
    expect(answers(page).locator(".state")).to_contain_text("the page was closed while the answer came")
    rest.set()


def test_an_answer_goes_on_while_another_view_is_shown(visit: Visit, thinking: Served) -> None:
    rest = threading.Event()
    thinking.script(*say("Begun"), rest, *say(", and done."))
    page = visit(thinking.url).open()
    ask(page, "Tell")
    expect(answers(page)).to_contain_text("Begun")
    page.get_by_role("link", name="Connect").click()
    expect(page).to_have_title("Connect · LocalLab")
    rest.set()
    page.go_back()
    expect(answers(page).locator(".content")).to_have_text("Begun, and done.")
    ready(page)


def test_a_lost_connection_keeps_the_text(visit: Visit, serve: Serve) -> None:
    with serve(engine={"template": TEMPLATE}) as served:
        served.script(*say("Half of it"), threading.Event())
        page = visit(served.url).open()
        ask(page, "Tell")
        expect(answers(page)).to_contain_text("Half of it")
        served.engine.die("broken")
        expect(answers(page).locator(".state")).to_contain_text("Interrupted")
        expect(answers(page).locator(".content")).to_have_text("Half of it")
    ask(page, "Are you there?")
    expect(page.locator("#notice")).to_contain_text("lost")
    expect(answers(page).nth(1).locator(".state")).to_contain_text("cannot be reached")


def test_reasoning_is_folded_and_calls_take_results_typed_in_by_hand(visit: Visit, thinking: Served) -> None:
    thinking.script(*say(RAW))
    tab = visit(thinking.url)
    page = tab.open()
    page.get_by_role("button", name="Settings").click()
    page.locator(".panel").get_by_text("Tools", exact=True).click()
    page.get_by_role("button", name="Add a tool").click()
    page.get_by_label("Name").fill("weather")
    page.get_by_label("Parameters").fill('{"type": "object", "properties": {"place": {"type": "string"}}}')
    ask(page, "What is the weather?")
    ready(page)
    thoughts = answers(page).locator(".thoughts")
    expect(thoughts).to_be_hidden()
    answers(page).get_by_text("Thoughts").click()
    expect(thoughts).to_have_text("so it goes")
    expect(answers(page).locator(".call")).to_have_count(2)
    expect(answers(page).locator(".call").first).to_contain_text('"place": "Zürich"')
    assert "<can>weather" in body(thinking)
    thinking.script(*say("It rains."))
    page.get_by_label("Result of weather").first.fill("rain")
    page.get_by_label("Result of weather").nth(1).fill("sun")
    assert tab.violations() == []
    page.get_by_role("button", name="Send the results").click()
    expect(answers(page).nth(1)).to_contain_text("It rains.")
    assert "<tool>rain[" in body(thinking) and "<tool>sun[" in body(thinking)


def test_sampling_and_system_text_go_with_the_request_and_stay(visit: Visit, thinking: Served) -> None:
    page = visit(thinking.url).open()
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("System text").first.fill("Be brief.")
    page.get_by_label("Temperature").first.fill("0.25")
    page.get_by_label("Max tokens").fill("7")
    page.get_by_label("Stop texts").fill("END\nSTOP")
    ask(page, "Hi")
    ready(page)
    prompt, params = thinking.engine.submitted[-1]
    assert prompt.startswith("<s><system>Be brief.")
    assert (params.temperature, params.max_tokens, tuple(params.stop)) == (0.25, 7, ("END", "STOP"))
    page.get_by_label("Top k").fill("1.5")
    ask(page, "Hi again")
    expect(page.locator("#notice")).to_contain_text('"Top k" is not right yet')
    page.reload()
    page.get_by_role("button", name="Settings").click()
    expect(page.get_by_label("Temperature").first).to_have_value("0.25")


def test_log_probabilities_are_shown_token_by_token(visit: Visit, thinking: Served) -> None:
    thinking.script(*say("abc", 1))
    tab = visit(thinking.url)
    page = tab.open()
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Log probabilities").check()
    ask(page, "Spell")
    ready(page)
    page.get_by_role("button", name="Tokens").click()
    tokens = page.locator(".tokens span")
    expect(tokens).to_have_text(["a", "b", "c"])
    tokens.nth(1).hover()
    expect(page.locator(".alternatives .chosen")).to_contain_text('"b" 37.5 %')
    page.locator(".tokens").press("ArrowRight")
    expect(page.locator(".alternatives .chosen")).to_contain_text('"c"')
    assert tab.violations() == []


def test_two_settings_side_by_side(visit: Visit, thinking: Served) -> None:
    thinking.engine.script = lambda prompt, params: say(f"at {params.temperature}")
    tab = visit(thinking.url)
    page = tab.open()
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Temperature").first.fill("0.1")
    page.get_by_role("checkbox", name="Side by side").check()
    page.get_by_label("Temperature").nth(1).fill("0.9")
    ask(page, "Same question")
    ready(page)
    sides = page.locator(".pair .side")
    expect(sides.nth(0)).to_contain_text("at 0.1")
    expect(sides.nth(1)).to_contain_text("at 0.9")
    assert tab.violations() == []
    page.get_by_role("button", name="Go on with this answer").click()
    page.get_by_role("checkbox", name="Side by side").uncheck()
    ask(page, "Next")
    ready(page)
    assert "at 0.9" in body(thinking) and "at 0.1" not in body(thinking)
    page.reload()
    expect(page.locator(".pair .side.picked")).to_contain_text("at 0.9")


PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")


def test_pictures_and_texts_go_with_a_message_where_the_model_takes_them(visit: Visit, serve: Serve, thinking: Served) -> None:
    picture = {"name": "dot.png", "mimeType": "image/png", "buffer": PIXEL}
    text = {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"remember"}
    noise = {"name": "x.bin", "mimeType": "application/octet-stream", "buffer": b"\xff\x00\xfe"}
    with serve(engine={"template": TEMPLATE, "modalities": ("text", "image"), "context": 4096}) as served:
        page = visit(served.url).open()
        expect(page.locator(".panel select").first).to_contain_text("tiny:1b")
        page.locator(".composer input[type=file]").set_input_files([picture, text, noise])
        expect(page.locator("#notice")).to_contain_text("x.bin is neither")
        expect(page.locator(".attached")).to_have_count(2)
        ask(page, "Look")
        ready(page)
        assert "<image " in body(served) and "notes.txt:" in body(served) and "remember" in body(served)
        page.reload()
        expect(page.locator(".message.user img")).to_have_js_property("naturalWidth", 1)
    page = visit(thinking.url).open()
    expect(page.locator(".panel select").first).to_contain_text("tiny:1b")
    page.evaluate(
        """([name, data]) => {
        const transfer = new DataTransfer();
        transfer.items.add(new File([Uint8Array.from(atob(data), (each) => each.charCodeAt(0))], name, { type: "image/png" }));
        const at = document.querySelector(".composer textarea");
        at.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
        }""",
        ["dot.png", base64.b64encode(PIXEL).decode()],
    )
    expect(page.locator("#notice")).to_contain_text("takes no pictures")


def test_conversations_are_found_renamed_exported_imported_and_deleted(visit: Visit, thinking: Served) -> None:
    thinking.engine.script = lambda prompt, params: say("It is blue." if "sky" in detokenize(prompt) else "It is deep.")
    page = visit(thinking.url).open()
    ask(page, "What about the sky?")
    ready(page)
    page.get_by_role("button", name="New conversation").click()
    expect(answers(page)).to_have_count(0)
    ask(page, "What about the sea?")
    ready(page)
    links = page.locator(".conversations a")
    expect(links).to_have_text(["What about the sea?", "What about the sky?"])
    page.get_by_label("Search conversations").fill("IS BLUE")
    expect(links).to_have_text(["What about the sky?"])
    links.click()
    expect(answers(page)).to_contain_text("It is blue.")
    page.locator(".talk .menu summary").click()
    page.get_by_role("button", name="Rename").click()
    page.get_by_label("Title").fill("Colours")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("heading", name="Colours")).to_be_visible()
    page.locator(".talk .menu summary").click()
    with page.expect_download() as saved:
        page.get_by_role("button", name="Export as Markdown").click()
    assert saved.value.suggested_filename == "Colours.md"
    assert "It is blue." in Path(saved.value.path()).read_text()
    page.locator(".talk .menu summary").click()
    with page.expect_download() as saved:
        page.get_by_role("button", name="Export as JSON").click()
    exported = Path(saved.value.path()).read_bytes()
    page.locator(".talk .menu summary").click()
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(answers(page)).to_have_count(0)
    page.get_by_label("Search conversations").fill("")
    expect(links).to_have_text(["What about the sea?"])
    importing = page.locator("aside.list input[type=file]")
    importing.set_input_files({"name": "a.json", "mimeType": "application/json", "buffer": exported})
    expect(links).to_have_text(["Colours", "What about the sea?"])
    importing.set_input_files({"name": "a.json", "mimeType": "application/json", "buffer": b'{"format": 1}'})
    expect(page.locator("#notice")).to_contain_text("format: must be")


def long_conversation(count: int) -> bytes:
    messages = [
        {"id": str(at), "parent": str(at - 1) if at else None, "role": "assistant" if at % 2 else "user",
         "content": f"message {at} " + "word " * (at % 60), "status": "done"}
        for at in range(count)
    ]  # fmt: skip
    return json.dumps({"format": "locallab-conversations", "conversations": [{"title": "long", "messages": messages}]}).encode()


def test_of_two_thousand_messages_only_those_in_view_are_in_the_document(visit: Visit, thinking: Served) -> None:
    page = visit(thinking.url).open()
    file = {"name": "a.json", "mimeType": "application/json", "buffer": long_conversation(2000)}
    page.locator("aside.list input[type=file]").set_input_files(file)
    page.get_by_role("link", name="long").click()
    expect(page.get_by_text("message 1999 ")).to_be_in_viewport()
    assert page.locator("article").count() < 60
    page.locator(".scroller").evaluate("(element) => { element.scrollTop = 0; }")
    expect(page.get_by_text("message 0 ")).to_be_in_viewport()
    assert page.locator("article").count() < 60
    page.locator(".scroller").evaluate("(element) => { element.scrollTop = element.scrollHeight / 2; }")
    page.wait_for_timeout(100)  # heights are guessed until they are seen
    middle = page.evaluate("document.elementFromPoint(innerWidth / 2, innerHeight / 2).closest('article').ariaPosInSet")
    assert 500 < int(middle) < 1500
    assert page.locator("article").first.get_attribute("aria-setsize") == "2000"


def test_two_tabs_show_the_same_conversation(visit: Visit, thinking: Served) -> None:
    rest = threading.Event()
    thinking.script(*say("Seen by both"), rest, *say(", whole."))
    page = visit(thinking.url).open()
    ask(page, "Tell")
    expect(answers(page)).to_contain_text("Seen by both")
    other = page.context.new_page()
    other.goto(page.url)
    expect(answers(other)).to_contain_text("Seen by both")
    rest.set()
    expect(answers(other).locator(".content")).to_have_text("Seen by both, whole.")
    expect(answers(other).locator(".state")).to_be_hidden()
    thinking.script(*say("From the other."))
    ask(other, "And now?")
    expect(answers(page).nth(1)).to_contain_text("From the other.")


def test_the_keyboard_alone_is_enough(visit: Visit, thinking: Served) -> None:
    page = visit(thinking.url).open()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="New conversation")).to_be_focused()
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.tagName") == "TEXTAREA":
            break
    page.keyboard.type("Hello there")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("friend")
    page.keyboard.press("Enter")
    ready(page)
    assert "Hello there\nfriend" in body(thinking)


@pytest.mark.parametrize("role", ["question", "answer", "error"])
def test_hostile_texts_are_texts(visit: Visit, thinking: Served, role: str) -> None:
    thinking.script(*(say(HOSTILE) if role != "error" else [ValueError(HOSTILE)]))
    page = visit(thinking.url).open()
    ask(page, HOSTILE if role == "question" else "Hi")
    ready(page)
    expect(page).to_have_title("Chat · LocalLab")
    assert page.locator("main script, main img, main a[href^='javascript']").count() == 0
    if role == "question":
        expect(page.locator(".message.user .content")).to_have_text(HOSTILE)
        expect(page.locator(".talk h1")).to_contain_text("⟨U+202E⟩" if len(HOSTILE) < 60 else "<img")


def test_hostile_names_of_tools_models_and_files_are_texts(visit: Visit, thinking: Served) -> None:
    call = {"id": "1", "name": HOSTILE, "arguments": HOSTILE}
    file = {"kind": "text", "name": HOSTILE, "data": HOSTILE}
    more = {"model": HOSTILE, "error": HOSTILE, "reasoning": HOSTILE, "calls": [call], "status": "interrupted"}
    messages = [
        {"id": "a", "parent": None, "role": "user", "content": HOSTILE, "files": [file]},
        {"id": "b", "parent": "a", "role": "assistant", "content": HOSTILE, **more},
        {"id": "c", "parent": "b", "role": "tool", "content": HOSTILE, "call": "1", "name": HOSTILE},
    ]
    exported = {"format": "locallab-conversations", "conversations": [{"title": HOSTILE, "messages": messages}]}
    tab = visit(thinking.url)
    page = tab.open()
    content = {"name": "a.json", "mimeType": "application/json", "buffer": json.dumps(exported).encode()}
    page.locator("aside.list input[type=file]").set_input_files(content)
    page.locator(".conversations a").click()
    shown = HOSTILE.replace("\u202e", "⟨U+202E⟩")
    for place in (".call strong", ".message .of", ".message .state", ".file summary", ".talk h1", ".message.tool h2"):
        expect(page.locator(place).filter(has_text=shown).first).to_be_visible()
    expect(page).to_have_title("Chat · LocalLab")
    assert page.locator("main script, main img, main a[href^='javascript']").count() == 0
    assert tab.violations() == []


def test_an_answer_of_five_megabytes_does_not_stop_the_page(visit: Visit, thinking: Served) -> None:
    line = b"All work and no play makes Jack a dull boy. " * 20 + b"\n"
    thinking.script(*[line * 100] * 57, b"THE END")
    page = visit(thinking.url).open()
    ask(page, "Write")
    content = page.locator(".message.assistant .content").first
    until(lambda: "THE END" in content.evaluate("(element) => element.textContent.slice(-100)"))
    ready(page)
    assert content.evaluate("(element) => element.textContent.length") > 5_000_000
    ask(page, "Short")
    expect(answers(page)).to_have_count(2)


def test_a_conversation_that_is_not_here_is_said(visit: Visit, thinking: Served) -> None:
    page = visit(thinking.url).open("#/chat/nowhere")
    expect(page.locator("#notice")).to_contain_text("not in this browser")


def test_a_screen_of_any_size_fits(visit: Visit, thinking: Served) -> None:
    tab = visit(thinking.url, viewport={"width": 360, "height": 640}, color_scheme="dark", reduced_motion="reduce")
    thinking.script(*say("word " * 40 + "x" * 500))
    page = tab.open()
    ask(page, "y" * 400)
    ready(page)
    for toggled in ("Settings", "List"):
        page.get_by_role("button", name=toggled).click()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        assert tab.violations() == []
        page.get_by_role("button", name=toggled).click()
