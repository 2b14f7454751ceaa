"""The commands of `locallab chat` as they are typed in a terminal, with an engine that plays a script."""

from __future__ import annotations

import json
import re
import stat
import sys
import threading
from pathlib import Path

import pytest

from locallab import settings
from tests.support.dialect_requests import ARGUMENTS, CALL, PARAMETERS, THOUGHT
from tests.support.fake_engine import say
from tests.support.http_server import Served
from tests.support.terminal import Terminal, terminal


def prompts(served: Served) -> list[str]:
    return [prompt for prompt, _ in served.engine.submitted]


def ask(shown: Terminal, typed: str, answer: str) -> str:
    """Type a line at the prompt; return the output up to the end of `answer`."""
    shown.expect(">>> ")
    shown.type(f"{typed}\r")
    shown.expect("\n")
    return shown.expect(answer) + answer


def leave(shown: Terminal) -> None:
    shown.expect(">>> ")
    shown.type("\x04")
    assert shown.end() == 0
    assert "Traceback" not in shown.text


def answers(served: Served, *texts: str) -> None:
    left = iter(texts)
    served.engine.script = lambda prompt, params: say(next(left))


def test_retry_and_undo(served: Served) -> None:
    answers(served, "One.", "Two.", "Three.", "Four.")
    with terminal("chat", "--url", served.url) as shown:
        ask(shown, "first", "One.")
        ask(shown, "second", "Two.")
        ask(shown, "/retry", "Three.")
        ask(shown, "/undo", "took back: second")
        ask(shown, "third", "Four.")
        leave(shown)
    assert "Two." not in prompts(served)[2]
    assert "One." in prompts(served)[3] and "second" not in prompts(served)[3]


def test_settings_go_along(served: Served) -> None:
    with terminal("chat", "--url", served.url, "--temperature", "0") as shown:
        ask(shown, "/set", "temperature")
        ask(shown, "/set top_k x", "top_k: expected int")
        ask(shown, "/set top_k 7", "top_k is 7")
        ask(shown, "/set max_tokens 3", "max_tokens is 3")
        ask(shown, "/set temperature default", "temperature is default")
        ask(shown, "hello", "(truncated: ")
        leave(shown)
    [(_, params)] = served.engine.submitted
    assert (params.top_k, params.max_tokens) == (7, 3) and params.temperature != 0


EDITOR = """\
import pathlib, sys
path, how = pathlib.Path(sys.argv[2]), sys.argv[1]
if how == "change":
    assert path.suffix == ".md" and path.stat().st_mode & 0o077 == 0
    path.write_text(path.read_text().replace("first", "better"))
elif how == "empty":
    path.write_text("")
elif how == "interrupt":
    import os, signal, time
    signal.signal(signal.SIGINT, lambda number, frame: path.write_text("Ctrl-C came"))
    print("editing", flush=True)
    while path.read_text() != "Ctrl-C came":
        time.sleep(0.01)
sys.exit(how == "fail")
"""


def test_edit(served: Served, tmp_path: Path) -> None:
    script = tmp_path / "editor.py"
    script.write_text(EDITOR)
    answers(served, "One.", "Two.")
    editor = f"{sys.executable} {script} change"
    with terminal("chat", "--url", served.url, EDITOR=editor, VISUAL="") as shown:
        ask(shown, "/edit", "nothing has been asked yet")
        ask(shown, "my first words", "One.")
        ask(shown, "/edit", "my better words")
        shown.expect("Two.")
        leave(shown)
    assert "One." not in prompts(served)[1] and "first" not in prompts(served)[1] and "my better words" in prompts(served)[1]


@pytest.mark.parametrize(
    ("how", "expected"),
    [("keep", "the message is unchanged"), ("empty", "the message is unchanged"), ("fail", "set VISUAL or EDITOR")],
)
def test_an_edit_that_comes_to_nothing(served: Served, tmp_path: Path, how: str, expected: str) -> None:
    script = tmp_path / "editor.py"
    script.write_text(EDITOR)
    answers(served, "One.", "Two.")
    with terminal("chat", "--url", served.url, VISUAL=f"{sys.executable} {script} {how}", EDITOR="false") as shown:
        ask(shown, "first", "One.")
        ask(shown, "/edit", expected)
        ask(shown, "second", "Two.")
        leave(shown)
    assert "first" in prompts(served)[1] and "One." in prompts(served)[1]


def test_ctrl_c_in_the_editor_is_for_the_editor(served: Served, tmp_path: Path) -> None:
    script = tmp_path / "editor.py"
    script.write_text(EDITOR)
    answers(served, "One.", "Two.")
    with terminal("chat", "--url", served.url, VISUAL=f"{sys.executable} {script} interrupt") as shown:
        ask(shown, "first", "One.")
        ask(shown, "/edit", "editing")
        shown.type("\x03")
        shown.expect("Two.")
        leave(shown)
    assert "Ctrl-C came" in prompts(served)[1]


def test_a_saved_conversation_goes_on_in_another_chat(served: Served, tmp_path: Path) -> None:
    answers(served, "One.", "Two.")
    path = tmp_path / "talk.json"
    with terminal("chat", "--url", served.url, "--system", "Be brief.") as shown:
        ask(shown, "first", "One.")
        ask(shown, f"/save {path}", "saved to")
        leave(shown)
    with terminal("chat", "--url", served.url) as shown:
        ask(shown, f"/load {tmp_path}/none.json", "No such file")
        ask(shown, f"/load {path}", "loaded 3 messages")
        ask(shown, "second", "Two.")
        leave(shown)
    prompt = prompts(served)[1]
    assert re.search("Be brief.*first.*One.*second", prompt, re.DOTALL)


def test_figures_of_an_answer(served: Served) -> None:
    served.script(*say("Some words."))
    served.engine.cached = 12
    with terminal("chat", "--url", served.url) as shown:
        assert "cached" not in ask(shown, "first", "Some words.")
        assert "cached" not in ask(shown, "/stats on", "answer are on")
        ask(shown, "second", "Some words.")
        shown.expect("11 tokens")
        assert "the first after" in shown.expect("12 of ")
        shown.expect(f"{len(prompts(served)[1].replace('<s>', '.'))} tokens of the prompt cached")
        ask(shown, "/stats off", "answer are off")
        assert "cached" not in ask(shown, "third", "Some words.") + shown.expect(">>> ")
        shown.type("\x04")
        assert shown.end() == 0


def test_reasoning_is_shown_folded_and_hidden(thinking: Served) -> None:
    thinking.script(*say(f"<think>{THOUGHT}</think>\n\nAn answer."))
    with terminal("chat", "--url", thinking.url) as shown:
        assert THOUGHT in ask(shown, "first", "An answer.")
        ask(shown, "/reasoning fold", "one line")
        folded = ask(shown, "second", "An answer.")
        assert THOUGHT not in folded and f"thought for 1 s, {len(THOUGHT)} characters" in folded
        ask(shown, "/reasoning", THOUGHT)
        ask(shown, "/reasoning hide", "hidden")
        hidden = ask(shown, "third", "An answer.")
        assert THOUGHT not in hidden and "thought for" not in hidden
        leave(shown)


def test_a_call_of_a_tool_is_shown_and_its_result_typed(thinking: Served, tmp_path: Path) -> None:
    path = tmp_path / "tools.json"
    path.write_text(json.dumps([{"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}]))
    answers(thinking, CALL, "Sunny.")
    with terminal("chat", "--url", thinking.url) as shown:
        ask(shown, f"/tools {path}", "the model may call weather")
        ask(shown, "weather?", f"call of weather {json.dumps(ARGUMENTS, ensure_ascii=False)}")
        shown.expect("the next message is the result of weather")
        ask(shown, "20 degrees", "Sunny.")
        ask(shown, "/tools", "the model has no tools")
        leave(shown)
    assert re.search(r"<tool>20 degrees", prompts(thinking)[1])


def test_a_call_sends_no_commands_to_the_terminal(thinking: Served, tmp_path: Path) -> None:
    path = tmp_path / "tools.json"
    path.write_text(json.dumps([{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]))
    call = {"name": "weather", "arguments": {"place": "\x1b]0;gotcha\x07\x9b2J\u202edrow"}}
    thinking.script(*say(f"<tool_call>\n{json.dumps(call)}\n</tool_call>"))
    with terminal("chat", "--url", thinking.url) as shown:
        ask(shown, f"/tools {path}", "the model may call weather")
        ask(shown, "weather?", "call of weather")
        leave(shown)
    assert "gotcha" in shown.text and "drow" in shown.text
    assert b"\x1b]0;" not in shown.raw and not set("\x07\x9b\u202e") & set(shown.raw.decode())


def test_what_came_before_ctrl_c_is_kept(served: Served) -> None:
    served.script(*say("Once upon"), threading.Event())
    with terminal("chat", "--url", served.url) as shown:
        ask(shown, "a story", "Once upon")
        shown.type("\x03")
        assert "^C" not in shown.expect("(stopped)")
        served.script(*say("On it goes."))
        ask(shown, "more", "On it goes.")
        leave(shown)
    assert re.search("a story.*Once upo.*more", prompts(served)[1], re.DOTALL)


def test_keys_during_an_answer_are_for_the_next_prompt(served: Served) -> None:
    gate = threading.Event()
    served.script(*say("Once upon"), gate, *say(" a time."))
    with terminal("chat", "--url", served.url) as shown:
        ask(shown, "a story", "Once upon")
        shown.type("/stats\r")
        gate.set()
        assert "/stats" not in shown.expect("a time.")
        shown.expect(">>> ")
        shown.expect("answer are off")
        leave(shown)
        assert shown.echoes


def test_ctrl_c_while_reasoning_leaves_the_question_for_a_retry(thinking: Served) -> None:
    thinking.script(*say(f"<think>{THOUGHT} and"), threading.Event())
    with terminal("chat", "--url", thinking.url) as shown:
        ask(shown, "a riddle", THOUGHT)
        shown.type("\x03")
        shown.expect("(stopped)")
        thinking.script(*say("<think></think>Solved."))
        ask(shown, "/retry", "Solved.")
        leave(shown)
    assert prompts(thinking)[0] == prompts(thinking)[1]


def test_tab_completes_commands_their_arguments_and_models(served: Served) -> None:
    with terminal("chat", "--url", served.url) as shown:
        shown.expect(">>> ")
        shown.type("/sta\ton\r")
        shown.expect("answer are on")
        shown.expect(">>> ")
        shown.type("/set max_t\t5\r")
        shown.expect("max_tokens is 5")
        shown.expect(">>> ")
        shown.type("/mod\tti\t\r")
        shown.expect("tiny:1b answers from now on")
        leave(shown)


def history() -> Path:
    return settings.home() / "chat-history"


def test_what_was_typed_comes_back_in_the_next_run(served: Served) -> None:
    served.script(*say("Yes."))
    with terminal("chat", "--url", served.url) as shown:
        ask(shown, "do you remember", "Yes.")
        ask(shown, "/stats on", "answer are on")
        leave(shown)
    assert stat.S_IMODE(history().stat().st_mode) == 0o600
    with terminal("chat", "--url", served.url) as shown:
        shown.expect(">>> ")
        shown.type("\x1b[A\x1b[A\r")
        shown.expect("Yes.")
        leave(shown)
    assert len(prompts(served)) == 2 and "do you remember" in prompts(served)[1]


@pytest.mark.parametrize(
    ("options", "environ"), [(["--no-history"], {}), ([], {"LOCALLAB_CHAT_HISTORY": "off"})], ids=["flag", "variable"]
)
def test_without_a_history_nothing_is_kept(served: Served, options: list[str], environ: dict[str, str]) -> None:
    served.script(*say("Yes."))
    with terminal("chat", "--url", served.url, *options, **environ) as shown:
        ask(shown, "forget this", "Yes.")
        leave(shown)
    assert not history().exists()


def test_the_key_is_not_kept(served: Served) -> None:
    with terminal("chat", "--url", served.url, "--api-key", "ll-secret") as shown:
        ask(shown, "/system ll-secret is my key", "the system message is set")
        ask(shown, "/system", "the system message is removed")
        leave(shown)
    assert history().read_text() == '"/system"\n'


def test_a_history_that_cannot_be_kept_is_said(served: Served) -> None:
    history().mkdir()
    with terminal("chat", "--url", served.url) as shown:
        assert "the lines you type are not kept" in shown.expect(">>> ")
        shown.type("\x04")
        assert shown.end() == 0
