"""schemathesis sends what /openapi.json allows and what it forbids: no route fails or answers otherwise than described."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from locallab.models.store import Store
from locallab.pool import Pool
from locallab.server.app import create_app
from locallab.settings import ServerSettings
from tests.support.fake_engine import FakeEngine, registry
from tests.support.http_server import running
from tests.support.openapi_check import Described

CLI = "import sys; from schemathesis.cli import schemathesis; schemathesis(sys.argv[1:])"
OPTIONS = ("--max-examples", "20", "--generation-deterministic", "--continue-on-failure", "--no-color", "--warnings", "off")

UNLOADING = ("--exclude-path", "/models/unload", "--exclude-tag", "ollama", "--exclude-path", "/api/v1/replay")
"""Routes that can unload the model are tested separately: the others rightly answer 503 then. A replay is ten requests."""

ENDLESS = ("--exclude-path", "/api/v1/events")
"""A stream that does not end by itself is tested separately."""

NO_MODEL = """
[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", "503"]
"""

REFUSES = ("--exclude-checks", "positive_data_acceptance")
"""Routes refuse some combinations of fields, and tokens that a model does not have, which no schema can express."""


@dataclasses.dataclass(frozen=True)
class Run:
    phases: str
    options: tuple[str, ...]
    config: str = ""


RUNS = {
    "nothing breaks the description": Run("examples,coverage,fuzzing", (*REFUSES, *UNLOADING, *ENDLESS)),
    "what is described is accepted": Run(
        "examples,coverage",
        (
            *("--checks", "positive_data_acceptance", *UNLOADING, *ENDLESS),
            *("--include-tag", "native", "--include-tag", "models", "--include-tag", "system"),
            # They are tried with two constraints at once, which no keyword forbids that the generator heeds.
            *("--exclude-path", "/generate/batch", "--exclude-path", "/generate", "--exclude-path", "/chat"),
        ),
    ),
    "a model can be unloaded": Run("examples,coverage,fuzzing", ("--include-path", "/models/unload")),
    "Ollama's routes unload too": Run("examples,coverage,fuzzing", (*REFUSES, "--include-tag", "ollama"), NO_MODEL),
}


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_the_api_is_as_described(tmp_path: Path, run: Run) -> None:
    def engine(*arguments: object) -> FakeEngine:
        return FakeEngine(*arguments, context=100_000)  # type: ignore[arg-type]

    pool = Pool(registry(tmp_path, "tiny:1b", "other:2b"), Store(tmp_path / "store"), engine=engine, grace=0.0)  # type: ignore[arg-type]
    pool.load_now("tiny:1b")
    (tmp_path / "schemathesis.toml").write_text(run.config)
    with running(create_app(pool, ServerSettings(rate_limit=False))) as url:
        command = [sys.executable, "-c", CLI, "run", f"{url}/openapi.json", *OPTIONS, "--phases", run.phases, *run.options]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
        described = Described(httpx.get(f"{url}/openapi.json").json())
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr
    selected, tested = (re.search(rf"{word}: (\d+)", done.stdout) for word in ("Selected", "Tested"))
    assert selected and tested and selected[1] == tested[1] != "0"
    if run is RUNS["nothing breaks the description"]:
        left_out = {"/models/unload", "/api/v1/events", "/api/v1/replay", "/openapi.json"}  # which schemathesis reads
        others = [o for _, path, o in described.operations() if path not in left_out and "ollama" not in o["tags"]]
        assert int(tested[1]) == len(others)
