"""scripts/cluster-bench, with one replica and short texts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "scripts" / "cluster-bench"


def run(*flags: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, BENCH, *map(str, flags)], capture_output=True, text=True, timeout=700)


@pytest.mark.cluster
@pytest.mark.timeout(800)
def test_both_tables_are_printed(model_path: Path) -> None:
    done = run("--model", model_path, "--replicas", 1, "--rounds", 1, "--quick", "--no-nodes", "--workloads", "short")
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines() if line.startswith("|")]
    assert [row[:2] for row in rows if row[0] == "short"] == [["short", "plain"], ["short", "1 replica"]]
    assert [row[0] for row in rows if row[0] in ("plain", "1 replica")] == ["plain", "1 replica"]
    assert all(float(row[2]) > 0 for row in rows if row[0] == "short")


def test_a_cluster_of_one_replica_is_what_others_are_compared_with() -> None:
    done = run("--model", "x.gguf", "--replicas", 2)
    assert done.returncode == 2 and "--replicas: 1 must be among them" in done.stderr
