from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from locallab import cli
from locallab.cli.commands import run
from locallab.media.attachment import digest
from locallab.server.dialects.assistant.templates import TASKS
from tests.support.fake_engine import say
from tests.support.http_server import Serve, Served
from tests.support.media_files import png, wav
from tests.support.terminal import ROOT, terminal
from tests.support.wait import LONG_PATIENCE


def invoke(served: Served, *arguments: str, piped: str = "") -> Result:
    return CliRunner().invoke(cli.main, ["run", "--url", served.url, *arguments], input=piped)


def test_the_tasks_are_those_of_the_assistant() -> None:
    assert run.TASKS == TASKS


def test_an_answer(served: Served) -> None:
    served.script(*say("It is **so**."))
    done = invoke(served, "tiny:1b", "Is it so?", "--system", "Be brief.", "--max-tokens", "100", "--temperature", "0.5")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "It is **so**.\n", "")
    [(prompt, params)] = served.engine.submitted
    assert prompt.index("Be brief.") < prompt.index("Is it so?")
    assert (params.max_tokens, params.temperature) == (100, 0.5)


def test_what_is_piped_in_is_the_prompt_or_comes_below_it(served: Served) -> None:
    invoke(served, "first", piped="print(1)\n")
    invoke(served, "first", "Explain this.", piped="print(1)\n")
    invoke(served, piped="print(1)\n")
    invoke(served, "What is this?", piped="print(1)\n")
    invoke(served, "Why is that so?")
    asked = [prompt.split("user\n")[1].split("<|im_end|>")[0] for prompt, _ in served.engine.submitted]
    both = "Explain this.\n\nprint(1)\n"
    assert asked == ["print(1)\n", both, "print(1)\n", "What is this?\n\nprint(1)\n", "Why is that so?"]


@pytest.mark.parametrize("task", TASKS)
def test_tasks(serve: Serve, task: str) -> None:
    with serve(engine={"context": 4096}) as served:
        served.script(*say("Done."))
        done = invoke(served, "tiny:1b", "--task", task, "--language", "python", piped="some words about code")
        prompt, params = served.engine.submitted[-1]
    assert (done.exit_code, done.stdout) == (0, "Done.\n")
    assert "python" in prompt and "words about code" in prompt
    assert params.temperature == 0.2


def test_as_json(served: Served) -> None:
    served.script(*say("Yes."))
    report = json.loads(invoke(served, "tiny:1b", "Really?", "--json").stdout)
    assert (report["model"], report["response"], report["finish_reason"]) == ("tiny:1b", "Yes.", "stop")
    assert report["usage"]["completion_tokens"] == 4
    served.script(*say("```python\nx\n```"))
    report = json.loads(invoke(served, "tiny:1b", "def x", "--task", "refactor", "--json").stdout)
    assert (report["task"], report["code"], report["model"]) == ("refactor", "x", "tiny:1b")


@pytest.mark.parametrize(
    ("arguments", "status", "reason"),
    [
        (["tiny:1b"], 2, "prompt: is missing"),
        (["tiny:1b", "  "], 2, "prompt: is missing"),
        (["bogus", "hello"], 2, "unknown model 'bogus'"),
        (["tiny:1b", "hello", "--task", "dance"], 2, "'dance' is not one of"),
        (["tiny:1b", "hello", "--language", "python"], 2, "--language: requires --task"),
        (["tiny:1b", "hello", "--task", "chat", "--system", "x"], 2, "--system: cannot be combined with --task"),
        (["tiny:1b", "hello", "--max-tokens", "0"], 2, "--max-tokens"),
        (["tiny:1b", "hello", "--temperature", "101"], 1, "temperature: must be at least 0 and at most 100"),
        (["tiny:1b", "word " * 600], 1, "maximum context length is 512"),
    ],
)
def test_what_cannot_be_done_is_one_line(served: Served, arguments: list[str], status: int, reason: str) -> None:
    done = invoke(served, *arguments)
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (status, "", 1)
    assert reason in done.stderr


def test_ctrl_c_ends_with_130(served: Served) -> None:
    served.script(*say("Once upon"), threading.Event())
    with terminal("run", "tiny:1b", "a story", "--url", served.url) as shown:
        shown.expect("Once upon")
        shown.type("\x03")
        shown.expect("locallab: interrupted")
        assert shown.end() == 130
    assert "Traceback" not in shown.text


def test_a_reader_that_leaves_is_no_crash(served: Served) -> None:
    served.script(*say("line\n" * 2000, size=5))
    command = f"{sys.executable} -m locallab run tiny:1b hello --url {served.url} | head -n 1"
    done = subprocess.run(
        command, shell=True, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LONG_PATIENCE
    )
    assert (done.stdout, done.stderr) == ("line\n", "")


def test_the_model_is_loaded_where_no_server_runs(model_path: Path, nowhere: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALLAB_CONTEXT", "512")
    monkeypatch.setenv("LOCALLAB_THREADS", "1")
    command = [
        sys.executable,
        "-m",
        "locallab",
        "run",
        str(model_path),
        "Say hello.",
        "--temperature",
        "0",
        "--max-tokens",
        "4",
    ]
    done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LONG_PATIENCE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert done.stderr == f"No server at {nowhere}; loading {model_path.stem} for this command.\n"


def test_a_model_named_on_the_fly_is_loaded_though_a_server_runs(
    served: Served, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LOCALLAB_PORT", served.url.rpartition(":")[2])
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(100))
    done = CliRunner().invoke(cli.main, ["run", str(broken), "hello"], input="")
    assert done.exit_code == 1
    assert f"cannot load {broken}" in done.stderr
    done = CliRunner().invoke(cli.main, ["run", "tiny:1b", "hello"], input="")
    assert done.exit_code == 0


SEES = {"modalities": ("text", "image", "audio"), "context": 4096}


def test_pictures_go_ahead_of_the_prompt(serve: Serve, tmp_path: Path) -> None:
    picture, noise = tmp_path / "a.png", tmp_path / "a.wav"
    picture.write_bytes(png())
    noise.write_bytes(wav())
    files = ["--image", str(picture), "--image", str(noise)]
    with serve(engine=SEES) as served:
        served.script(*say("A dot."))
        assert invoke(served, "tiny:1b", "What is it?", *files).stdout == "A dot.\n"
        assert invoke(served, "tiny:1b", *files[:2]).exit_code == 0
        assert invoke(served, "tiny:1b", "What?", "--task", "chat", *files[:2]).exit_code == 0
        asked = [prompt.rpartition("user\n")[2].split("<|im_end|>")[0] for prompt, _ in served.engine.submitted]
    seen, heard = (f"<{kind} {digest(data)[:8]}>" for kind, data in (("image", png()), ("audio", wav())))
    assert asked == [f"{seen}{heard}What is it?", seen, f"{seen}What?"]


def test_a_picture_that_cannot_be_read(served: Served, tmp_path: Path) -> None:
    done = invoke(served, "tiny:1b", "x", "--image", str(tmp_path / "none.png"))
    assert done.exit_code == 2 and "none.png: No such file or directory" in done.stderr
    done = invoke(served, "tiny:1b", "x", "--mmproj", "x.gguf")
    assert done.exit_code == 2 and "--mmproj: cannot be combined with --url" in done.stderr
