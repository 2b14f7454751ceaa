from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from locallab import cli
from locallab.cli.commands.bench import summary
from locallab.load.figures import Figures
from tests.support.certificates import issue
from tests.support.fake_engine import say
from tests.support.http_server import Serve, Served
from tests.support.listening import behind


def test_what_is_shown_of_a_load() -> None:
    messages = {"error event: boom": 2}
    measured = Figures(3, 2, 1, 1, 40, 4.00049, 9.99, 200.04, None, 150.0, 160.0, 170.0, messages)
    assert summary(measured) == {
        "requests": 3,
        "errors": 2,
        "first_error": "error event: boom",
        "wrong_lengths": 1,
        "tokens": 40,
        "seconds": 4.0,
        "tokens_per_s": 10.0,
        "ttft_p50": 200.0,
        "ttft_p95": None,
        "itl_p50": 150.0,
        "itl_p99": 160.0,
    }


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
    assert shown.exit_code == 0, shown.stdout
    assert shown.stdout.startswith(
        f"tiny:1b at {served.url}: 3 clients, 2 requests each, 6 tokens per answer\nanswers         6\n"
    )


def test_answers_that_are_not_whole_make_status_1(served: Served) -> None:
    said = iter([say("first"), *[[b"a", RuntimeError("boom")]] * 4])
    served.engine.script = lambda prompt, params: next(said)
    shown = CliRunner().invoke(cli.main, ["bench", "--url", served.url, "--clients", "2", "--requests", "2"])
    assert shown.exit_code == 1
    assert "4, 4 incomplete: error event: internal error" in shown.stdout
    assert "first token     -" in shown.stdout


def test_answers_of_another_length_make_status_1(served: Served) -> None:
    served.script(*say("abc", size=1))
    shown = CliRunner().invoke(cli.main, ["bench", "--url", served.url, "--max-tokens", "4"])
    assert shown.exit_code == 1
    assert "8, 8 of another length than asked for" in shown.stdout


def test_a_model_that_is_none(served: Served) -> None:
    shown = CliRunner().invoke(cli.main, ["bench", "--url", served.url, "--model", "bogus"])
    assert (shown.exit_code, shown.stderr) == (2, "locallab: unknown model 'bogus'\n")


def test_a_key(serve: Serve) -> None:
    with serve(api_key="secret") as served:
        served.script(*say("abcdefgh", size=1))
        arguments = ["bench", "--url", served.url, "--clients", "1", "--requests", "1", "--max-tokens", "2"]
        assert CliRunner().invoke(cli.main, arguments).exit_code == 1
        assert CliRunner().invoke(cli.main, arguments, env={"LOCALLAB_API_KEY": "secret"}).exit_code == 0


@pytest.mark.parametrize("address", ["socket", "certificate"])
def test_a_load_at_other_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    certificate = issue(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.authority))
    settings = {"uds": str(tmp_path / "x.sock")} if address == "socket" else certificate.settings()
    with behind(tmp_path, **settings) as where:
        url = f"unix:{where}" if address == "socket" else f"https://localhost:{where}"
        arguments = ["bench", "--url", url, "--clients", "2", "--requests", "1", "--max-tokens", "4", "--json"]
        report = json.loads(CliRunner().invoke(cli.main, arguments).stdout)
    assert (report["url"], report["requests"], report["errors"]) == (url, 2, 0)
