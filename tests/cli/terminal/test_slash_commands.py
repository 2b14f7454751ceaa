from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from locallab import cli
from locallab.cli.api_client import ApiClient
from locallab.cli.terminal.answer_view import View, figures
from locallab.cli.terminal.conversation import Talk
from locallab.cli.terminal.slash_commands import COMMANDS, completions, obey
from tests.support.http_server import Served


@pytest.fixture
def talk(served: Served) -> Iterator[Talk]:
    with ApiClient(served.url) as server:
        yield Talk(server, "tiny:1b")


def said(talk: Talk, line: str, capsys: pytest.CaptureFixture[str], view: View | None = None) -> str:
    """Return what a command prints."""
    assert obey(talk, view or View(), line) is None
    return capsys.readouterr().out


def test_settings_are_set_and_unset(talk: Talk, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(talk, "/set temperature 0.25", capsys) == "temperature is 0.25\n"
    assert said(talk, "/set stop THE END", capsys) == 'stop is "THE END"\n'
    assert said(talk, "/set  max_tokens  7 ", capsys) == "max_tokens is 7\n"
    assert talk.sampling == {"temperature": 0.25, "stop": "THE END", "max_tokens": 7}
    assert said(talk, "/set temperature", capsys) == "temperature is default (sampling temperature; 0 is greedy)\n"
    assert said(talk, "/set stop default", capsys) == "stop is default\n"
    assert said(talk, "/set max_tokens null", capsys) == "max_tokens is default\n"
    assert talk.sampling == {}


def test_settings_are_listed_those_that_are_set_first(talk: Talk, capsys: pytest.CaptureFixture[str]) -> None:
    talk.sampling = {"seed": 5}
    heading, first, *others = said(talk, "/set", capsys).splitlines()
    assert heading.split()[:2] == ["name", "value"]
    assert first.split()[:2] == ["seed", "5"] and first.endswith("-1: random")
    assert [line.split()[1] for line in others] == ["default"] * len(others)
    assert "temperature" in {line.split()[0] for line in others}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("/set temprature 1", "temprature: there is no such field; did you mean temperature"),
        ("/set top_p 7", "top_p: must be above 0 and at most 1, got 7"),
        ("/set seed x", "seed: expected int"),
        ("/stats yes", "yes: must be on or off"),
        ("/reasoning loud", "loud: must be show, fold or hide"),
        ("/retry", "nothing has been asked yet"),
        ("/edit", "needs a terminal"),
        ("/undo", "nothing to take back"),
        ("/load", "/load FILE: the name of the file is missing"),
        ("/load /none.json", "/none.json: No such file"),
        ("/save", "/save FILE: the name of the file is missing"),
        ("/tools /none.json", "/none.json: No such file"),
        ("/rety", "unknown command /rety; did you mean /retry?"),
    ],
)
def test_what_is_wrong_is_said_and_changes_nothing(
    talk: Talk, capsys: pytest.CaptureFixture[str], line: str, problem: str
) -> None:
    if line == "/edit":
        talk.restart([{"role": "user", "content": "x"}])
    before, view = list(talk.messages), View()
    assert problem in said(talk, line, capsys, view)
    assert (talk.messages, talk.sampling, view) == (before, {}, View())


def test_switches(talk: Talk, capsys: pytest.CaptureFixture[str]) -> None:
    view = View()
    assert said(talk, "/stats", capsys, view) == "figures after each answer are off\n"
    assert said(talk, "/stats ON", capsys, view) == "figures after each answer are on\n" and view.stats
    assert said(talk, "/stats off", capsys, view) == "figures after each answer are off\n" and not view.stats
    assert said(talk, "/reasoning fold", capsys, view) == "reasoning is one line\n" and view.reasoning == "fold"
    assert said(talk, "/reasoning", capsys, view) == "the last answer has no reasoning\n"


def test_reasoning_of_a_model_cannot_control_the_terminal(talk: Talk, capsys: pytest.CaptureFixture[str]) -> None:
    talk.thought = "a\x1b[2Jb\u202ec\n"
    assert said(talk, "/reasoning", capsys) == "a[2Jbc\n"


def test_help_names_every_command_and_what_follows_it(talk: Talk, capsys: pytest.CaptureFixture[str]) -> None:
    shown = said(talk, "/help", capsys)
    for name, command in COMMANDS.items():
        assert name in ("quit", "bye") or f"  /{name} {command.argument}" in shown


def test_the_page_names_every_command() -> None:
    page = Path(cli.__file__).with_name("README.md").read_text().replace("\\|", "|")
    for name, command in COMMANDS.items():
        assert name in ("quit", "bye") or f"`/{name} {command.argument}".rstrip() + "`" in page


def test_a_conversation_without_an_answer_is_loaded(talk: Talk, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    path.write_text(json.dumps([{"role": "user", "content": "and?"}]))
    assert said(talk, f"/load {path}", capsys) == (
        f"loaded 1 message from {path}\nthe last one has no answer: /retry asks for it\n"
    )
    answer = obey(talk, View(), "/retry")
    assert answer is not None and "".join(piece.text for piece in answer) == talk.messages[-1]["content"]
    assert len(talk.messages) == 2


def test_calls_without_results_are_shown_when_they_are_loaded(
    talk: Talk, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f\x1b[2J", "arguments": '{"a":\n1}'}}
    path = tmp_path / "talk.json"
    path.write_text(json.dumps([{"role": "user", "content": "and?"}, {"role": "assistant", "tool_calls": [call]}]))
    assert said(talk, f"/load {path}", capsys) == (
        f'loaded 2 messages from {path}\ncall of f[2J {{"a": 1}}\nthe next message is the result of f[2J\n'
    )


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("hello /mo", []),
        ("/mo", ["/model "]),
        ("/se", ["/set "]),
        ("/re", ["/retry", "/reasoning "]),
        ("/model t", ["/model tiny:1b"]),
        ("/model OTHER", ["/model other:2b"]),
        ("/set top_", ["/set top_k ", "/set top_p ", "/set top_n_sigma "]),
        ("/set top_k ", ["/set top_k default"]),
        ("/set nothing", []),
        ("/stats o", ["/stats on", "/stats off"]),
        ("/reasoning f", ["/reasoning fold"]),
        ("/undo x", []),
        ("/nothing x", []),
    ],
)
def test_completions(talk: Talk, line: str, expected: list[str]) -> None:
    assert list(completions(talk, line)) == expected


def test_completions_of_files(talk: Talk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub dir").mkdir()
    for name in ("talk.json", "tall.md", ".hidden", "a\x1bb"):
        (tmp_path / name).touch()
    assert list(completions(talk, f"/load {tmp_path}/ta")) == [f"/load {tmp_path}/talk.json", f"/load {tmp_path}/tall.md"]
    assert list(completions(talk, f"/save {tmp_path}/")) == [
        f"/save {tmp_path}/{name}" for name in ("sub dir/", "talk.json", "tall.md")
    ]
    assert list(completions(talk, f"/image {tmp_path}/.")) == [f"/image {tmp_path}/.hidden"]
    assert list(completions(talk, f"/load {tmp_path}/none/x")) == []
    monkeypatch.chdir(tmp_path)
    assert list(completions(talk, "/load tal")) == ["/load talk.json", "/load tall.md"]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert list(completions(talk, "/load ~/talk")) == ["/load ~/talk.json"]


def test_no_model_is_completed_without_a_server(nowhere: str) -> None:
    with ApiClient(nowhere) as server:
        assert list(completions(Talk(server, "m"), "/model t")) == []


def test_figures() -> None:
    usage = {"prompt_tokens": 1200, "completion_tokens": 50, "prompt_tokens_details": {"cached_tokens": 1100}}
    assert figures(usage, {"predicted_per_second": 41.26}, 0.123) == (
        "50 tokens at 41.3 tokens/s; the first after 0.12 s; 1,100 of 1,200 tokens of the prompt cached"
    )
    assert figures({**usage, "completion_tokens": 1}, {"predicted_per_second": 0.0}, None) == (
        "1 token; 1,100 of 1,200 tokens of the prompt cached"
    )
