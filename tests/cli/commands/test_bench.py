from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from locallab import cli
from locallab.cli.commands.bench import Timing, percentile, summary
from tests.support.fake_engine import say
from tests.support.http_server import Serve, Served


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [([], 50, None), ([3.0], 99, 3.0), ([4.0, 1.0, 3.0, 2.0], 50, 2.5), ([0.0, 10.0], 95, 9.5), ([1.0, 2.0, 3.0], 100, 3.0)],
)
def test_percentiles(values: list[float], percent: float, expected: float | None) -> None:
    assert percentile(values, percent) == expected


def test_only_whole_answers_count() -> None:
    answers = [
        Timing(0.0, [0.1, 0.2, 0.4], 30),
        Timing(1.0, [1.3], 10),
        Timing(1.0, [9.0, 99.0], 7, "the server stopped before the answer was complete"),
    ]
    found = summary(answers, 4.0)
    assert (found["requests"], found["errors"], found["tokens"], found["tokens_per_s"]) == (3, 1, 40, 10.0)
    assert (found["ttft_p50"], found["ttft_p95"], found["itl_p50"]) == (200.0, 290.0, 150.0)
    assert found["first_error"] == "the server stopped before the answer was complete"


def test_a_load(served: Served) -> None:
    served.script(*say("abcdefgh", size=1))
    arguments = ["bench", "--url", served.url, "--clients", "3", "--requests", "2", "--max-tokens", "6"]
    report = json.loads(CliRunner().invoke(cli.main, [*arguments, "--json"]).stdout)
    assert (report["model"], report["clients"], report["requests"], report["errors"], report["tokens"]) == (
        "tiny:1b",
        3,
        6,
        0,
        36,
    )
    assert report["tokens_per_s"] > 0 and report["ttft_p50"] > 0 and report["itl_p50"] is not None
    prompts = [prompt for prompt, _ in served.engine.submitted[1:]]
    assert len(set(prompts)) == 6
    assert all(params.ignore_eos and params.max_tokens == 6 for _, params in served.engine.submitted[1:])
    shown = CliRunner().invoke(cli.main, arguments)
    assert shown.exit_code == 0
    assert shown.stdout.startswith(
        f"tiny:1b at {served.url}: 3 clients, 2 requests each, 6 tokens per answer\nanswers         6\n"
    )


def test_answers_that_are_not_whole_make_status_1(served: Served) -> None:
    said = iter([say("first"), *[[b"a", RuntimeError("boom")]] * 4])
    served.engine.script = lambda prompt, params: next(said)
    shown = CliRunner().invoke(cli.main, ["bench", "--url", served.url, "--clients", "2", "--requests", "2"])
    assert shown.exit_code == 1
    assert "4, 4 incomplete: internal error" in shown.stdout
    assert "first token     -" in shown.stdout


def test_a_model_that_is_none(served: Served) -> None:
    shown = CliRunner().invoke(cli.main, ["bench", "--url", served.url, "--model", "bogus"])
    assert (shown.exit_code, shown.stderr) == (2, "locallab: unknown model 'bogus'\n")


def test_a_key(serve: Serve) -> None:
    with serve(api_key="secret") as served:
        arguments = ["bench", "--url", served.url, "--clients", "1", "--requests", "1"]
        assert CliRunner().invoke(cli.main, arguments).exit_code == 1
        assert CliRunner().invoke(cli.main, arguments, env={"LOCALLAB_API_KEY": "secret"}).exit_code == 0
