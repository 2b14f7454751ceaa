from __future__ import annotations

import json
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import psutil
import pytest

from locallab import hardware
from locallab.engine import llama
from tests.support.wait import until

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

from gpulib import builds, outcome, random_model  # noqa: E402
from gpulib.measure import Held  # noqa: E402
from gpulib.report import COMPUTE, DECODE, GAP, POOL, PREFIX, STATE_IO, STREAMS, Row, constants, table  # noqa: E402
from gpulib.stages import Runner, Stage, StageFailed  # noqa: E402


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


class TestRandomModel:
    def test_words_are_a_few_tokens_and_the_markup_is_one(self, tiny: Path) -> None:
        model = llama.Model(tiny, 0, vocab_only=True)
        assert model.chat_template and len(model.control_tokens) >= 4
        tokens = model.tokenize("<|im_start|>the cat", add_special=False, parse_special=True)
        assert 4 <= len(tokens) <= 8 and model.text(tokens).replace(" ", "") == "<|im_start|>thecat"
        assert len(model.tokenize("\u00e9\n", add_special=False, parse_special=False)) >= 3
        model.close()


def stage(name: str, work: Callable[[Runner], dict[str, Any]], seconds: float = 30.0) -> Stage:
    return Stage(name, seconds, work)


def fails(_runner: Runner) -> dict[str, Any]:
    raise StageFailed("no luck")


class TestRunner:
    def test_what_fails_is_reported_and_the_others_run(self, tmp_path: Path) -> None:
        runner = Runner(tmp_path / "results", 60)
        stages = [stage("one", lambda _: {"found": 1}), stage("two", fails), stage("three", lambda _: {"found": 3})]
        assert not runner.run(stages, outcome.report)
        kept = json.loads((tmp_path / "results/results.json").read_text())
        assert (kept["one"], kept["three"]) == ({"found": 1}, {"found": 3})
        assert [each["problem"] for each in kept["stages"].values()] == [None, "no luck", None]
        assert "| stage two | 0 s; **no luck** |" in (tmp_path / "results/report.md").read_text()
        assert Runner(tmp_path, 60).run(stages[:1], outcome.report)

    def test_everything_is_kept_as_it_comes(self, tmp_path: Path) -> None:
        def look(runner: Runner) -> dict[str, Any]:
            assert json.loads((tmp_path / "results.json").read_text())["one"] == {"found": 1}
            runner.keep("two", {"found": "half"})
            raise StageFailed("then it stopped")

        assert not Runner(tmp_path, 60).run([stage("one", lambda _: {"found": 1}), stage("two", look)], outcome.report)
        assert json.loads((tmp_path / "results.json").read_text())["two"] == {"found": "half"}

    def test_a_child_s_words_are_kept_and_returned(self, tmp_path: Path) -> None:
        runner = Runner(tmp_path, 60)
        text = runner.child("hello", [sys.executable, "-c", "import os; print(os.environ['NAME'])"], {"NAME": "you"})
        assert text == "you\n" and (tmp_path / "hello.log").read_text().endswith("you\n")

    def test_a_child_that_fails_is_told_with_its_last_words(self, tmp_path: Path) -> None:
        runner = Runner(tmp_path, 60)
        with pytest.raises(StageFailed, match=r"it ended with exit code 3; see bad\.log: ouch"):
            runner.child("bad", [sys.executable, "-c", "import sys; print('ouch'); sys.exit(3)"])

    def test_a_child_that_takes_too_long_ends_with_its_own_children(self, tmp_path: Path) -> None:
        script = "import subprocess, sys; p = subprocess.Popen(['sleep', '600']); print(p.pid, flush=True); p.wait()"
        took: list[str] = []

        def long(runner: Runner) -> dict[str, Any]:
            runner.child("long", [sys.executable, "-c", script])
            return {}

        runner = Runner(tmp_path, 60)
        assert not runner.run([stage("long", long, seconds=1.5)], outcome.report)
        took.append(runner.results["stages"]["long"]["problem"])
        assert "it took too long" in took[0]
        pid = int((tmp_path / "long.log").read_text().split()[-1])
        until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)

    def test_without_time_a_stage_does_not_begin(self, tmp_path: Path) -> None:
        runner = Runner(tmp_path, 1e-9)
        assert not runner.run([stage("late", lambda _: {"found": 1})], outcome.report)
        assert runner.results["stages"]["late"]["problem"] == "no time was left" and "late" not in runner.results


class Recorder(Runner):
    """Runs no child, and remembers all."""

    def __init__(self, output: Path) -> None:
        super().__init__(output, 60)
        self.children: dict[str, tuple[list[str], dict[str, str]]] = {}

    def child(self, name: str, command: Any, env: Any = None, cwd: Path | None = None) -> str:
        self.children[name] = ([str(word) for word in command], dict(env or {}))
        if name == "venv":
            (self.output / "venv/lib/python3/site-packages").mkdir(parents=True)
        if name == "download":
            with tarfile.open(self.output / "source/llama_cpp_python.tar.gz", "w:gz"):
                pass
        return ""


class TestBuilds:
    @pytest.fixture
    def compilers(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        folder = tmp_path / "bin"
        folder.mkdir()
        for name in ("cmake", "nvcc"):
            (folder / name).write_text("#!/bin/sh\n")
            (folder / name).chmod(0o755)
        monkeypatch.setenv("PATH", str(folder))
        return folder

    @pytest.fixture(autouse=True)
    def card(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(hardware, "gpus", lambda: [{"name": "A card"}])
        monkeypatch.setattr(llama, "supports_gpu", lambda: False)

    def test_one_build_gives_the_libraries_and_the_server(self, tmp_path: Path, compilers: Path) -> None:
        runner = Recorder(tmp_path / "out")
        made = builds.with_server(runner, builds.make(runner, None, None))
        assert list(runner.children) == ["download", "cmake", "compile", "probe"]
        binaries = tmp_path / "out/build/bin"
        assert (made.server, made.on_gpu, made.env) == (binaries / "llama-server", True, {"LLAMA_CPP_LIB_PATH": str(binaries)})
        words = runner.children["cmake"][0]
        assert {"-DGGML_CUDA=ON", "-DCMAKE_CUDA_ARCHITECTURES=native"} < set(words)
        source = tmp_path / f"out/source/llama_cpp_python-{llama_cpp.__version__}"
        assert str(source / "vendor/llama.cpp") in words
        assert "llama-server" in runner.children["compile"][0]
        assert runner.children["probe"][1] == made.env
        source.mkdir()
        again = Recorder(tmp_path / "out")
        builds.make(again, None, None)
        assert "download" not in again.children

    def test_a_build_that_can_use_the_gpu_is_taken_as_it_is(
        self, tmp_path: Path, compilers: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(llama, "supports_gpu", lambda: True)
        runner = Recorder(tmp_path)
        made = builds.with_server(runner, builds.make(runner, None, Path("/bin/llama-server")))
        assert runner.children == {} and (made.on_gpu, str(made.python)) == (True, sys.executable)
        assert not builds.here(None, cpu=True).on_gpu
        made = builds.with_server(runner, builds.make(runner, None, None))
        assert made.env == {} and made.server == tmp_path / "build/bin/llama-server"

    def test_a_wheel_has_an_environment_of_its_own_with_the_other_packages(self, tmp_path: Path) -> None:
        runner = Recorder(tmp_path)
        made = builds.make(runner, Path("/some/llama.whl"), Path("/bin/llama-server"))
        assert list(runner.children) == ["venv", "wheel", "probe"]
        assert made.python == tmp_path / "venv/bin/python"
        assert "/some/llama.whl" in runner.children["wheel"][0]
        assert Path(np.__file__).parents[1] in map(Path, next(tmp_path.rglob("gpu-check.pth")).read_text().splitlines())

    def test_what_is_missing_is_named(self, tmp_path: Path, compilers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (compilers / "nvcc").unlink()
        monkeypatch.setattr(builds, "CUDA", tmp_path)
        with pytest.raises(StageFailed, match="there is no nvcc: install the CUDA toolkit, or give --wheel"):
            builds.make(Recorder(tmp_path / "out"), None, None)
        monkeypatch.setattr(hardware, "gpus", list)
        with pytest.raises(StageFailed, match="there is no NVIDIA GPU: see nvidia-smi, or use --cpu"):
            builds.make(Recorder(tmp_path / "out"), None, None)


class TestOutcome:
    def test_one_table_has_all_that_decides(self) -> None:
        phases = {"plan": 0.1, "fill": 0.02, "post": 0.03, "decode": 9.0, "sample": 0.4}
        row = {"requests": 8, "sampling": "greedy", "device_sampling": "on", "prompts_ms": 40.0, "step_ms": 9.6}
        memory = {"before": {"ram_mib": 1.0, "gpu_mib": 500.0}, "after": {"ram_mib": 900.0, "gpu_mib": 9500.0}}
        sample = {"workload": "short", "clients": 8, "errors": 0}
        results = {
            "machine": {"card": "A card, 80 GiB", "driver": "570", "model": "random-7b.gguf"},
            "steps": {
                "chosen": {"kv_layout": "streams"},
                "why": "all layers fit",
                "load_s": 3.21,
                "memory": memory,
                "rows": [{**row, "phases_ms": phases, "tokens_per_s": 833.0}, {**row, "note": "too short"}],
            },
            "bench": {
                "samples": [
                    {**sample, "server": "locallab", "tokens_per_s": 110.0},
                    {**sample, "server": "llama-server", "tokens_per_s": 100.0},
                    {**sample, "server": "locallab", "clients": 64, "tokens_per_s": 500.0},
                ],
                "tables": {8: "| bench |"},
            },
            "tests": {"summary": "17 passed"},
            "stages": {"build": {"seconds": 200.0, "problem": "a | b"}},
        }
        text = outcome.report(results)
        for line in (
            "| card | A card, 80 GiB |",
            "| driver | 570 |",
            "| chosen | kv_layout streams |",
            "| why | all layers fit |",
            "| memory | RAM 900 MiB at most; GPU 9,000 MiB |",
            "| short, 8 clients | 1.10 of the C++ server; locallab 110.0 tokens/s, llama-server 100.0 tokens/s |",
            "| short, 64 clients | locallab 500.0 tokens/s |",
            "| tests marked gpu | 17 passed |",
            "| stage build | 200 s; **a \\| b** |",
        ):
            assert line in text.splitlines()
        assert "9.60 ms (plan 0.10, fill 0.02, post 0.03, decode 9.00, sample 0.40); 833.0 tokens/s" in text
        assert text.endswith("| bench |")

    def test_nothing_is_needed(self) -> None:
        assert outcome.report({"stages": {}}) == "| what | found |\n| --- | --- |"


RIVAL = """#!{python}
import sys
sys.argv[1:] = ["--port", sys.argv[sys.argv.index("--port") + 1]]
import runpy
runpy.run_path({script!r}, run_name="__main__")
"""


class TestScript:
    def check(self, *flags: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, SCRIPTS / "gpu-check", *flags], capture_output=True, text=True, timeout=200)

    def test_the_whole_check_on_a_cpu(self, tmp_path: Path) -> None:
        """With a scripted server in the place of the C++ one."""
        rival = tmp_path / "llama-server"
        script = SCRIPTS.parent / "tests/support/sse_server.py"
        rival.write_text(RIVAL.format(python=sys.executable, script=str(script)))
        rival.chmod(0o755)
        output = tmp_path / "out"
        flags = ["--cpu", "--random", "tiny", "--quick", "--clients", "2", "--threads", "1"]
        done = self.check(*flags, "--llama-server", rival, "--output", output)
        results = json.loads((output / "results.json").read_text())
        assert [stage["problem"] for stage in results["stages"].values()] == [None] * 6, done.stderr
        assert done.returncode == 0
        table = dict(line.strip("| ").split(" | ", 1) for line in done.stdout.split("\n\n")[0].splitlines())
        assert table["llama.cpp"] == "on the CPU, as installed" and "random-tiny.gguf" in table["model"]
        assert "kv_layout streams" in table["chosen"] and table["why"].startswith("on the CPU, context 32,768")
        assert re.match(r"\d+ passed", table["tests marked gpu"])
        assert re.match(r"[0-9.]+ of the C\+\+ server; ", table["short, 2 clients"])
        for sampling in ("greedy", "temperature 1"):
            for where in ("on", "off"):
                step = table[f"step, 2 requests, {sampling}, --device-sampling {where}"]
                assert re.match(r"[0-9.]+ ms \(plan .*fill .*post .*decode .*sample .*\); [0-9.,]+ tokens/s", step)
        rows = results["layouts"]["rows"]
        assert {row["what"] for row in rows} == {*("decode", "compute", *STATE_IO), "prefill alone", "prefill beside 3 x 100"}
        assert "GAP: " in done.stdout and "| short    |       2 | locallab " in done.stdout
        assert done.stdout.strip() == (output / "report.md").read_text().strip()

    @pytest.mark.parametrize(
        ("flags", "named"),
        [
            (["--model", "/no/such.gguf"], "--model: no such file: /no/such.gguf"),
            (["--wheel", "/no/such.whl"], "--wheel: no such file: /no/such.whl"),
            (["--model", __file__, "--random", "7b"], "--random: not allowed with argument --model"),
            (["--stages", "bench,tea"], "--stages: unknown: tea; known: build, model, tests, steps, bench, layouts"),
            (["--clients", "1,x"], "--clients: a number of at least 1 is needed, got 'x'"),
        ],
    )
    def test_wrong_flags_are_named(self, flags: list[str], named: str) -> None:
        done = self.check(*flags)
        assert done.returncode == 2
        assert named in done.stderr

    def test_a_file_that_is_no_model_is_named_by_each_stage(self, tmp_path: Path) -> None:
        done = self.check("--cpu", "--model", __file__, "--stages", "steps,layouts", "--output", tmp_path / "out")
        assert done.returncode == 1
        assert done.stdout.count("GGUF") >= 2
