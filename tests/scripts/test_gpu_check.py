from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from locallab.engine import llama

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

from gpulib import random_model  # noqa: E402
from gpulib.measure import Held  # noqa: E402
from gpulib.report import COMPUTE, DECODE, GAP, POOL, PREFIX, STATE_IO, STREAMS, Row, constants, table  # noqa: E402


def decode(sequences: int, tokens: int, pool: float, streams: float, more: Mapping[str, float] | None = None) -> Row:
    several = {PREFIX: pool} if sequences > 1 else {}
    return Row(DECODE, sequences, tokens, {POOL: pool, STREAMS: streams, **several, **(more or {})})


class TestReport:
    def test_a_table_has_every_row_and_leaves_out_what_does_not_apply(self) -> None:
        lines = table([decode(1, 400, 12, 10), decode(8, 400, 1234, 30.25, {PREFIX: 28})]).splitlines()
        assert (
            lines[0] == "| ms | sequences | tokens each | pool | pool, one prefix | streams | streams, a gap | pool / streams |"
        )
        assert lines[2] == "| decode | 1 | 400 | 12 |  | 10 |  | 1.20 |"
        assert lines[3] == "| decode | 8 | 400 | 1,234 | 28 | 30.2 |  | 40.79 |"

    def test_a_state_is_compared_with_computing_it_in_its_layout(self) -> None:
        rows = [Row(COMPUTE, 1, 900, {POOL: 100.0, STREAMS: 50.0}), Row("save", 1, 900, {POOL: 1.0, STREAMS: 2.0})]
        lines = table([*rows, decode(1, 900, 4, 5)]).splitlines()
        assert lines[3] == "| save | 1 | 900 | 1 (1.00%) |  | 2 (4.00%) |  | 0.50 |"
        assert lines[4] == "| decode | 1 | 900 | 4 |  | 5 |  | 0.80 |"

    def test_a_gap_is_a_share_of_a_step_with_one_token_at_the_same_length(self) -> None:
        rows = [
            decode(1, 100, 10, 10),
            decode(1, 900, 20, 20),
            decode(8, 100, 40, 40, {GAP: 45}),
            decode(8, 900, 90, 80, {GAP: 90}),
            decode(8, 400, 50, 50, {GAP: 99}),
        ]
        assert constants(rows, 0.6)[0] == "GAP: 0.50 of a step with one token (engine/layout.py: 0.6)"

    @pytest.mark.parametrize(
        ("pool", "prefix", "told"),
        [
            (60.0, 30.0, "streams by 1.50; with one prefix unified by 1.33"),
            (40.8, 39.2, "no difference; with one prefix no difference"),
        ],
    )
    def test_the_faster_layout_by_number_of_sequences(self, pool: float, prefix: float, told: str) -> None:
        rows = [decode(1, 100, 10, 10), decode(8, 100, pool, 40, {PREFIX: prefix})]
        assert f"8 sequences: {told}" in constants(rows, 0.6)

    def test_further_sequences_may_wait_where_the_tokens_a_second_hardly_grow(self) -> None:
        rows = [decode(n, 100, ms, ms) for n, ms in {1: 11.6, 8: 43, 32: 137}.items()]
        assert "8 have 75% of the best" in constants(rows, 0.6)[-1]

    def test_nothing_follows_from_nothing(self) -> None:
        assert constants([], 0.6) == []


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model.write(tmp_path_factory.mktemp("models") / "tiny.gguf", random_model.SHAPES["tiny"])


class TestHeld:
    @pytest.mark.parametrize("unified", [True, False])
    def test_sequences_hold_what_was_computed_once(self, tiny: Path, unified: bool) -> None:
        model = llama.Model(tiny, 0)
        held = Held(model, ids=4, cells=256, unified=unified, threads=1)
        assert list(held.learn((20, 50), lambda: None)) == [20, 50]
        held.step([0], 50)
        expected = held.context.logits()[0].copy()
        held.hold([1, 3], 20)
        assert [held.context.last_position(sequence) for sequence in range(4)] == [-1, 19, -1, 19]
        held.hold([0, 1, 2], 50, shared=unified)
        held.step([0, 1, 2], 50)
        assert abs(held.context.logits()[:3] - expected).max() < 0.1 < abs(expected).max()
        held.close()
        model.close()


class TestScript:
    def check(self, *flags: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, SCRIPTS / "gpu-check", *flags], capture_output=True, text=True, timeout=120)

    def test_measures_a_random_model(self) -> None:
        done = self.check("--random", "tiny", "--quick", "--threads", "1")
        assert (done.returncode, done.stderr) == (0, "")
        rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")]
        assert [row[0].removeprefix("| ") for row in rows[2:]] == [
            *["decode"] * 2,
            "prefill alone",
            "prefill beside 3 x 100",
            "compute",
            *STATE_IO,
        ]
        assert "- GAP: " in done.stdout
        assert "- build: llama-cpp-python 0." in done.stdout

    @pytest.mark.parametrize(
        ("flags", "named"),
        [
            ([], "--model: smollm2:135m is not in the store; run `locallab pull smollm2:135m`"),
            (["--model", "/no/such.gguf"], "--model: no such file: /no/such.gguf"),
            (["--random", "70b"], "--random: invalid choice: '70b'"),
            (["--model", __file__, "--random", "7b"], "--random: not allowed with argument --model"),
            (["--random", "tiny", "--threads", "0"], "--threads: a number of at least 1 is needed"),
        ],
    )
    def test_wrong_flags_are_named(self, flags: list[str], named: str) -> None:
        done = self.check(*flags)
        assert done.returncode == 2
        assert named in done.stderr

    def test_a_file_that_is_no_model_is_named(self) -> None:
        done = self.check("--model", __file__)
        assert (done.returncode, done.stdout) == (1, "")
        assert "this is not a GGUF file" in done.stderr
