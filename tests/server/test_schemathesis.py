"""schemathesis sends what /openapi.json allows and what it forbids: nothing fails, or answers otherwise than it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.server.conftest import Serve
from tests.server.described import Described

UNLOAD = "/models/unload"
"""Tested by itself: whatever asks a model after it is rightly told that there is none."""

RUN = "import sys; from schemathesis.cli import schemathesis; schemathesis(sys.argv[1:])"

RUNS: dict[str, tuple[str, ...]] = {
    "nothing breaks the description": (
        *("--phases", "examples,coverage,fuzzing", "--exclude-checks", "positive_data_acceptance"),
        *("--exclude-path", UNLOAD),
    ),
    "what is described is accepted": (  # the other routes refuse some combinations of fields, which no schema can say
        *("--phases", "examples,coverage", "--checks", "positive_data_acceptance"),
        *("--include-tag", "native", "--include-tag", "models", "--include-tag", "system", "--exclude-path", UNLOAD),
    ),
    "a model can be unloaded": ("--include-path", UNLOAD, "--phases", "examples,coverage,fuzzing"),
}


@pytest.mark.parametrize("options", RUNS.values(), ids=RUNS)
def test_the_api_is_as_described(serve: Serve, tmp_path: Path, options: tuple[str, ...]) -> None:
    with serve(engine={"context": 100_000}) as served:
        command = [sys.executable, "-c", RUN, "run", f"{served.url}/openapi.json", "--max-examples", "20", "--no-color"]
        command += ["--generation-deterministic", "--continue-on-failure", "--warnings", "off", *options]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout[-10_000:] + done.stderr
        selected, tested = (re.search(rf"{word}: (\d+)", done.stdout) for word in ("Selected", "Tested"))
        assert selected and tested and selected[1] == tested[1] != "0"
        if options is RUNS["nothing breaks the description"]:
            described = Described(served.http.get("/openapi.json").json())
            left_out = {UNLOAD, "/openapi.json"}  # the latter by schemathesis, which reads it
            assert int(tested[1]) == len({path for _, path, _ in described.operations()} - left_out)
