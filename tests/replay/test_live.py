"""`locallab doctor --clients` against a live server."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from locallab import cli
from tests.support.served_process import Process

pytestmark = pytest.mark.clients


def test_every_client_could_live_with_the_answers(live: Process) -> None:
    done = CliRunner().invoke(cli.main, ["doctor", "--clients", "--url", live.url, "--json"])
    assert [each for each in json.loads(done.stdout) if each["status"] == "fail"] == []
    assert done.exit_code == 0
