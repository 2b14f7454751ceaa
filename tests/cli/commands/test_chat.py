"""`locallab chat` in a terminal, with an engine that plays a script."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from locallab import cli
from locallab.media.attachment import digest
from tests.support.fake_engine import say
from tests.support.http_server import Serve, Served
from tests.support.media_files import png
from tests.support.terminal import ROOT, Terminal, terminal
from tests.support.wait import PATIENCE


def prompts(served: Served) -> list[str]:
    return [prompt for prompt, _ in served.engine.submitted]


def ask(shown: Terminal, question: str, answer: str) -> str:
    """Type a question at the prompt, and return the output up to the end of `answer`."""
    shown.expect(">>> ")
    shown.type(f"{question}\r")
    shown.expect("\n")
    return shown.expect(answer) + answer


def test_an_answer_streams_as_markdown(served: Served) -> None:
    gate = threading.Event()
    served.script(*say("# Title\n\nSome **bold** text.\n\nNext"), gate, *say(" and last"))
    with terminal("chat", "--url", served.url) as shown:
        ask(shown, "hello", "bold")
        assert "**" not in shown.expect("text.")
        gate.set()
        shown.expect("Next and last")
        shown.expect(">>> ")
        shown.type("\x04")
        assert shown.end() == 0
    assert "\x1b[1m" in shown.raw.decode()


def test_the_conversation_goes_along_with_the_system_message(served: Served) -> None:
    served.script(*say("Fine."))
    with terminal("chat", "tiny:1b", "--url", served.url, "--system", "Be brief.", "--temperature", "0") as shown:
        ask(shown, "How are you?", "Fine.")
        ask(shown, "Sure?", "Fine.")
        shown.expect(">>> ")
        shown.type("/exit\r")
        assert shown.end() == 0
    last = prompts(served)[-1]
    assert [last.index(part) for part in ("Be brief.", "How are you?", "Fine.", "Sure?")] == sorted(
        last.index(part) for part in ("Be brief.", "How are you?", "Fine.", "Sure?")
    )
    assert served.engine.submitted[-1][1].temperature == 0


def test_ctrl_c_stops_the_answer_and_a_second_one_leaves(served: Served) -> None:
    served.script(*say("Once upon"), threading.Event())
    with terminal("chat", "--url", served.url) as shown:
        ask(shown, "a story", "Once upon")
        shown.type("\x03")
        shown.expect("(stopped)")
        shown.expect(">>> ")
        deadline = time.monotonic() + PATIENCE
        while not served.engine.cancelled:
            assert time.monotonic() < deadline
            threading.Event().wait(0.01)
        shown.interrupt()
        assert shown.end() == 0
    assert "Traceback" not in shown.text


def test_ctrl_c_in_a_line_drops_it_and_at_the_empty_prompt_asks_for_another(served: Served) -> None:
    with terminal("chat", "--url", served.url) as shown:
        shown.expect(">>> ")
        shown.type("never sent")
        shown.expect("never sent")
        shown.interrupt()
        shown.expect(">>> ")
        shown.interrupt()
        shown.expect("Ctrl-C again")
        shown.expect(">>> ")
        shown.interrupt()
        assert shown.end() == 0
    assert prompts(served) == []


def test_a_message_of_several_lines(served: Served) -> None:
    served.script(*say("Read."))
    with terminal("chat", "--url", served.url) as shown:
        shown.expect(">>> ")
        shown.type('"""one\r')
        shown.expect("... ")
        shown.type('two"""\r')
        shown.expect("Read.")
        shown.expect(">>> ")
        shown.type("three \\\r")
        shown.expect("... ")
        shown.type("four\r")
        shown.expect("Read.")
        shown.expect(">>> ")
        shown.type("\x04")
        assert shown.end() == 0
    assert "one\ntwo" in prompts(served)[0]
    assert "three \nfour" in prompts(served)[1]


def test_commands(serve: Serve, tmp_path: Path) -> None:
    document, messages = tmp_path / "talk.md", tmp_path / "talk.json"
    with serve() as served, terminal("chat", "--url", served.url) as shown:
        served.script(*say("Yes."))
        ask(shown, "/help", "/save FILE")
        ask(shown, "/system Be kind.", "the system message is set")
        ask(shown, "Really?", "Yes.")
        ask(shown, f"/save {document}", "saved to")
        ask(shown, f"/save {messages}", "saved to")
        ask(shown, f"/save {messages}", "File exists")
        ask(shown, "/clear", "started a new conversation")
        ask(shown, "/sustem x", "did you mean /system?")
        ask(shown, "/model", "* tiny:1b")
        ask(shown, "/model nobody", "unknown model 'nobody'")
        ask(shown, "/model other:2b", "other:2b answers from now on")
        ask(shown, "/mod\t first\r", "tiny:1b answers from now on")
        shown.expect(">>> ")
        shown.type("/exit\r")
        assert shown.end() == 0
    assert document.read_text() == "## System\n\nBe kind.\n\n## You\n\nReally?\n\n## tiny:1b\n\nYes.\n"
    assert [each["role"] for each in json.loads(messages.read_text())] == ["system", "user", "assistant"]


def test_an_error_is_shown_and_the_conversation_continues(served: Served) -> None:
    with terminal("chat", "--url", served.url) as shown:
        served.engine.full = True
        ask(shown, "first", "the server is busy")
        served.engine.full = False
        served.script(*say("Here."))
        ask(shown, "second", "Here.")
        shown.expect(">>> ")
        shown.type("\x04")
        assert shown.end() == 0
    assert "first" not in prompts(served)[-1]


def test_an_answer_cut_short_says_so(served: Served) -> None:
    with terminal("chat", "--url", served.url, "--max-tokens", "5") as shown:
        ask(shown, "hello", "(truncated: ")


def test_a_model_sends_no_commands_to_the_terminal(served: Served) -> None:
    served.script(*say("be\x1b]0;gotcha\x07fore \x9b2Jafter"))
    with terminal("chat", "--url", served.url) as shown:
        ask(shown, "hello", "after")
        shown.expect(">>> ")
    assert b"\x1b]0;" not in shown.raw and "\x9b" not in shown.raw.decode()


@pytest.mark.parametrize(("environ", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)], ids=["usual", "NO_COLOR"])
def test_colours(served: Served, environ: dict[str, str], coloured: bool) -> None:
    served.script(*say("`code` here"))
    with terminal("chat", "--url", served.url, **environ) as shown:
        ask(shown, "hello", "here")
        shown.expect(">>> ")
    assert bool(re.search(r"\x1b\[([0-9]+;)*(3|4|9)[0-8][0-9;]*m", shown.raw.decode())) is coloured


def piped(url: str, text: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "locallab", "chat", "--url", url]
    return subprocess.run(command, cwd=ROOT, input=text, capture_output=True, text=True, timeout=PATIENCE)


def test_piped_lines_are_answered_as_they_are(served: Served) -> None:
    served.script(*say("An **answer**."))
    done = piped(served.url, "one\n\ntwo \\\nmore\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "An **answer**.\nAn **answer**.\n", "")
    assert "two \nmore" in prompts(served)[-1]


def test_piped_bytes_that_are_no_text(served: Served) -> None:
    served.script(*say("Yes."))
    command = [sys.executable, "-m", "locallab", "chat", "--url", served.url]
    done = subprocess.run(command, cwd=ROOT, input=b"caf\xe9\n", capture_output=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"Yes.\n", b"")
    assert "caf\ufffd" in prompts(served)[0]


def test_a_failure_ends_what_nobody_types(served: Served) -> None:
    served.engine.full = True
    done = piped(served.url, "one\ntwo\n")
    assert (done.returncode, done.stderr) == (1, "locallab: the server is busy: 3 requests are waiting already\n")


def test_no_server_and_a_model_that_is_none(nowhere: str) -> None:
    done = CliRunner().invoke(cli.main, ["chat", "--url", nowhere])
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert f"no server answers at {nowhere}" in done.stderr
    done = CliRunner().invoke(cli.main, ["chat", "bogus"])
    assert done.exit_code == 2
    assert "unknown model 'bogus'" in done.stderr


def test_a_model_is_loaded_where_no_server_runs(model_path: Path, nowhere: str) -> None:
    options = {"LOCALLAB_CONTEXT": "512", "LOCALLAB_THREADS": "1"}
    with terminal("chat", str(model_path), "--temperature", "0", "--max-tokens", "3", **options) as shown:
        shown.expect(f"No server at {nowhere}; loading")
        ask(shown, "Say hello.", "(truncated: ")
        shown.expect(">>> ")
        shown.type("/exit\r")
        assert shown.end() == 0


@pytest.mark.parametrize("arguments", [("--max-tokens", "0"), ("--temperature", "-1"), ("a", "b")], ids=" ".join)
def test_a_wrong_command_line(arguments: tuple[str, ...]) -> None:
    assert CliRunner().invoke(cli.main, ["chat", *arguments]).exit_code == 2


def test_a_picture_goes_with_a_message(serve: Serve, tmp_path: Path) -> None:
    picture = tmp_path / "a b.png"
    picture.write_bytes(png())
    seen = f"<image {digest(png())[:8]}>"
    with serve(engine={"modalities": ("text", "image"), "context": 4096}) as served:
        served.script(*say("A dot."))
        with terminal("chat", "--url", served.url) as shown:
            shown.expect(">>> ")
            shown.type("/image\r")
            shown.expect("the name of the file is missing")
            shown.expect(">>> ")
            shown.type(f"/image {tmp_path}/none.png\r")
            shown.expect("No such file")
            shown.expect(">>> ")
            shown.type(f"/image {picture}\r")
            shown.expect("goes with the next message")
            ask(shown, "What is it?", "A dot.")
            ask(shown, f"'{picture}' and this?", "A dot.")
            shown.expect(">>> ")
            shown.type(f"/save {tmp_path}/talk.md\r")
            shown.expect("saved")
            shown.expect(">>> ")
            shown.type("\x04")
            assert shown.end() == 0
        first, second = prompts(served)
    assert f"user\n{seen}What is it?<|im_end|>" in first
    assert f"user\n{seen}What is it?<|im_end|>" in second and f"user\n{seen}and this?<|im_end|>" in second
    assert "[picture]\nWhat is it?" in (tmp_path / "talk.md").read_text()


def test_a_path_is_text_for_a_model_of_texts(served: Served, tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    picture.write_bytes(png())
    served.script(*say("I cannot see."))
    with terminal("chat", "--url", served.url) as shown:
        ask(shown, f"{picture} what is it?", "I cannot see.")
        shown.expect(">>> ")
        shown.type("\x04")
        assert shown.end() == 0
    assert f"{picture} what is it?" in prompts(served)[0]
