from __future__ import annotations

import contextlib
import dataclasses
import importlib.machinery
import importlib.util
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

from benchlib import busy, cpu, figure, flags, goals, random_projector, report, rivals, source, summary  # noqa: E402
from benchlib.pictures import png  # noqa: E402
from benchlib.prompts import WORKLOADS, Planner  # noqa: E402
from benchlib.results import Results, Run  # noqa: E402
from benchlib.servers import PLACEHOLDERS, Size, chat_flags, expand, fill  # noqa: E402
from benchlib.summary import Turn  # noqa: E402
from benchlib.table import table  # noqa: E402

from locallab.load.client import Answer  # noqa: E402
from locallab.load.generator import Outcome  # noqa: E402
from tests.support import tiny_gguf  # noqa: E402
from tests.support.live_engine import running  # noqa: E402
from tests.support.wait import until  # noqa: E402

SERVER = SCRIPTS.parent / "tests/support/sse_server.py"
RESULTS = sorted((SCRIPTS / "results").glob("*.json"))
TURN = Turn(workload="short", clients=1, round=1, server="a")
StartServer = Callable[..., str]


@pytest.fixture
def start_server() -> Iterator[StartServer]:
    """Starts a scripted server with the given flags; gives its URL."""
    running: list[subprocess.Popen[str]] = []

    def start(*flags: str) -> str:
        process = subprocess.Popen([sys.executable, str(SERVER), *flags], stdout=subprocess.PIPE, text=True)
        running.append(process)
        assert process.stdout
        return f"http://127.0.0.1:{int(process.stdout.readline())}"

    yield start
    for process in running:
        process.kill()
        process.communicate()


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """scripts/bench as a module; its handlers of signals are not set."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    loader = importlib.machinery.SourceFileLoader("bench_script", str(SCRIPTS / "bench"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("bench_script", loader))
    monkeypatch.setitem(sys.modules, "bench_script", module)
    loader.exec_module(module)
    return module


def bench(*flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPTS / "bench"), *flags], capture_output=True, text=True, timeout=120)


def compare(tmp_path: Path, *flags: str, code: int = 0) -> tuple[dict[str, Any], subprocess.CompletedProcess[str]]:
    done = bench(*flags, "--json", str(tmp_path / "result.json"))
    assert done.returncode == code, done.stderr
    return json.loads((tmp_path / "result.json").read_text()), done


def rows_by_server(result: dict[str, Any]) -> dict[str, Any]:
    return {row["server"]: row for row in result["rows"]}


def answer(arrivals: list[float], *, started: float = 0.0, max_tokens: int = 2, **values: Any) -> Answer:
    return Answer(max_tokens, started, arrivals={0: arrivals} if arrivals else {}, status=200, **values)


def sample(server: str, round_: int, **values: Any) -> summary.Sample:
    measured = summary.measure(Outcome([answer([0.5, 0.6])], [], 1.0, 0.0), TURN)
    return dataclasses.replace(measured, server=server, round=round_, **values)


def results(*samples: summary.Sample, reference: str = "ref", rounds: int = 1, **values: Any) -> Results:
    names = dict.fromkeys(each.server for each in samples)
    return Results(runs=[Run({}, dict.fromkeys(names, "how"), reference, rounds, **values)], samples=list(samples))


class TestMeasure:
    def test_counts_prompts_and_what_the_servers_cache_had(self) -> None:
        told = [answer([0.1], prompt_tokens=tokens, cached_tokens=cached) for tokens, cached in ((100, 0), (300, 200))]
        for answers, share in (([*told, answer([0.1], prompt_tokens=100)], 0.5), ([answer([0.1])], None)):
            assert summary.measure(Outcome(answers, [], 1.0, 0.1), TURN).cached == share
        assert summary.measure(Outcome(told, [], 1.0, 0.1), TURN).prompt_tokens == 200

    def test_tells_what_was_copied_from_the_file_of_each_answer(self) -> None:
        files = [source.python_file(20, key) for key in "ab"]
        said = [b'{"choices":[{"delta":{"content":%s}}]}' % json.dumps(text).encode() for text in (files[0], "own words " * 99)]
        answers = [answer([0.1], kept=[data]) for data in said]
        assert summary.measure(Outcome(answers, [], 1.0, 0.1), TURN, files).copied == 0.5
        assert summary.measure(Outcome(answers[::-1], [], 1.0, 0.1), TURN, files).copied < 0.1  # the imports


class TestSummarise:
    def test_takes_the_median_of_each_rounds_ratio(self) -> None:
        samples = [sample("ref", number, tokens_per_s=base) for number, base in enumerate([10.0, 20.0, 40.0])]
        samples += [sample("other", number, tokens_per_s=20.0) for number in range(3)]
        rows = summary.summarise(samples, "ref")
        assert [row.server for row in rows] == ["ref", "other"]
        assert [row.ratios["tokens_per_s"] for row in rows] == [1.0, 1.0]
        assert [row.values["tokens_per_s"] for row in rows] == [20.0, 20.0]

    def test_has_no_ratio_without_the_references_value(self) -> None:
        rows = summary.summarise([sample("ref", 1, ttft_p50=None, tokens_per_s=0.0), sample("other", 1)], "ref")
        assert rows[1].ratios["ttft_p50"] is None
        assert rows[1].ratios["tokens_per_s"] is None

    def test_puts_the_reference_first_and_keeps_the_largest_peak(self) -> None:
        rows = summary.summarise([sample("a", 1), sample("ref", 1, peak_mib=5.0), sample("ref", 2, peak_mib=7.0)], "ref")
        assert [(row.server, row.peak_mib, row.requests) for row in rows] == [("ref", 7.0, 2), ("a", None, 1)]

    def test_table_is_markdown(self) -> None:
        head, rule, line = table(summary.summarise([sample("ref", 1)], "ref"), "ref").splitlines()
        assert len({text.count("|") for text in (head, rule, line)}) == 1
        assert line.split("|")[1:4] == [" short    ", "       1 ", " ref    "]


class TestGoals:
    @pytest.mark.parametrize(
        ("values", "said"),
        [
            ({"tokens_per_s": 10.0, "itl_p99": 4.0}, "yes"),
            ({"tokens_per_s": 9.9, "itl_p99": 4.0}, "no: tok/s"),
            ({"tokens_per_s": 10.0, "itl_p99": 4.1}, "no: ITL p99"),
            ({"tokens_per_s": 9.9, "itl_p99": None}, "no: tok/s, ITL p99"),
            ({"tokens_per_s": 10.0, "itl_p99": 1.0, "errors": 1}, "no: tok/s, ITL p99"),
        ],
        ids=["reached", "slow", "uneven", "no value", "an error"],
    )
    def test_are_reached_or_not(self, values: dict[str, Any], said: str) -> None:
        rows = results(sample("ref", 1, tokens_per_s=10.0, itl_p99=2.0), sample("locallab", 1, **values)).rows
        ours = table(rows, "ref").splitlines()[3]
        assert "| tok/s ≥ 1.00, ITL p99 ≤ 2.00 " in ours
        assert f"| {said} " in ours

    def test_of_a_start_are_seconds_and_a_share_of_memory(self) -> None:
        time, memory = goals.ROWS["start", 1]
        assert [str(time), str(memory)] == ["TTFT p50 ≤ 2 s", "memory ≤ 1.30"]
        for value, share, reached in ((2000.0, 1.304, True), (2000.5, 1.31, False)):
            assert time.reached({"ttft_p50": value}, {}) == memory.reached({}, {"peak_mib": share}) == reached

    def test_are_of_rows_that_there_are(self) -> None:
        for workload, clients in goals.ROWS:
            assert clients in (WORKLOADS[workload].clients or (clients,))


class TestRivals:
    def test_each_set_of_flags_is_for_a_row(self) -> None:
        rows = {f"{workload}:{clients}" for workload, clients in goals.ROWS} | {workload for workload, _ in goals.ROWS}
        assert set(rivals.BEST) <= rows
        assert set(rivals.BEST.values()) <= set(rivals.TRIED.values())
        assert rivals.best("short", 1) == ""

    def test_each_set_of_flags_can_be_measured_beside_the_others(self, script: Any) -> None:
        flags = ["--model", __file__, "--llama-server", "x", "--tune"]
        args = script.flags.parse(flags, "")
        assert [*args.commands] == [*rivals.TRIED] and args.reference == "default"
        filled = fill(args.commands["ngram-simple"], **dict.fromkeys(PLACEHOLDERS, "x"))
        assert filled[-2:] == ["--spec-type", "ngram-simple"]


class TestReport:
    def test_says_which_turns_are_noisy(self) -> None:
        samples = [sample("ref", 1, other_cpu=0.05), sample("ref", 2, other_cpu=0.5), sample("ref", 3)]
        assert "1 of 3 turns are noisy" in report.markdown(results(*samples))
        assert "noisy" not in report.markdown(results(samples[0]))

    def test_says_where_servers_count_other_prompts(self) -> None:
        same = [sample(server, 1, prompt_tokens=9.0) for server in ("ref", "other")]
        assert "prompt tokens" not in report.markdown(results(*same)).split("|")[-1]
        other = dataclasses.replace(same[1], prompt_tokens=8.0)
        assert "- short, 1 clients: the servers count other numbers of prompt tokens" in report.markdown(
            results(same[0], other)
        )

    def test_compares_a_restart_with_the_cold_prompt_of_its_round(self) -> None:
        times = {"cold": (1000.0, 2000.0, 4000.0), "restart": (100.0, 100.0, 100.0)}
        samples = [
            sample("ref", number, workload=workload, ttft_p50=time)
            for workload, each in times.items()
            for number, time in enumerate(each)
        ]
        assert "- restart, ref: TTFT p50 after the restart is 0.05 of the cold one" in report.markdown(results(*samples))
        assert "after the restart" not in report.markdown(results(*samples[:3]))

    def test_stands_between_the_markers_of_a_page(self) -> None:
        found = results(sample("ref", 1))
        page = "before\n<!-- results -->\nold\n<!-- /results -->\nafter\n"
        assert report.on_page(page, found) == page.replace("old", report.markdown(found))
        with pytest.raises(ValueError, match="<!-- results -->"):
            report.on_page("no markers", found)

    @pytest.mark.parametrize("file", RESULTS, ids=lambda file: file.name)
    def test_committed_figures_are_those_of_the_committed_results(self, file: Path) -> None:
        assert file.with_suffix(".svg").read_text() == figure.svg(Results.read(file))

    def test_the_page_has_the_table_of_the_committed_results(self) -> None:
        page = (SCRIPTS / "README.md").read_text()
        assert page == report.on_page(page, Results.read(SCRIPTS / "results/cpu.json"))


class TestFigure:
    def bars(self, *samples: summary.Sample) -> dict[str, float]:
        """Label -> signed width of its bar."""
        root = ElementTree.fromstring(figure.svg(results(*samples)))
        widths = {"ahead": 1.0, "behind": -1.0}
        rects = root.findall("{*}rect")
        labels = [each.text for each in root.findall("{*}text") if each.get("text-anchor") == "end"]
        return {
            str(label): float(rect.get("width", 0)) * widths[rect.get("class", "")]
            for label, rect in zip(labels, rects, strict=True)
        }

    def test_has_a_bar_for_each_row(self) -> None:
        base = [sample("ref", 1, workload=name, tokens_per_s=10.0, ttft_p50=80.0) for name in ("short", "json", "cold")]
        speeds = [("short", 40.0, 80.0), ("json", 5.0, 80.0), ("cold", 10.0, 40.0)]
        ours = [sample("locallab", 1, workload=name, tokens_per_s=speed, ttft_p50=time) for name, speed, time in speeds]
        found = self.bars(*base, *ours)
        assert [*found] == ["short, 1 client", "json, 1 client", "cold, 1 client"]
        four, half, twice = found.values()
        assert four == pytest.approx(2 * twice, abs=0.2) and half == pytest.approx(-twice, abs=0.2)

    def test_leaves_out_what_is_wrong(self) -> None:
        samples = [sample("ref", 1), sample("ref", 1, workload="json"), sample("locallab", 1)]
        assert len(self.bars(*samples, sample("locallab", 1, workload="json", wrong_lengths=1))) == 1
        with pytest.raises(ValueError, match="without errors"):
            self.bars(sample("ref", 1), sample("locallab", 1, errors=1))

    def test_suits_dark_pages_too(self) -> None:
        assert "prefers-color-scheme: dark" in figure.svg(results(sample("ref", 1), sample("locallab", 1)))


class TestResults:
    def run(self, *servers: str) -> Run:
        return Run({"CPU": "x"}, dict.fromkeys(servers, "how"), servers[0], 1)

    def test_are_what_was_written(self, tmp_path: Path) -> None:
        written = Results(tmp_path / "r.json")
        written.begin(self.run("ref"))
        written.add(sample("ref", 1, messages={"no": 2}))
        read = Results.read(tmp_path / "r.json")
        assert (read.runs, read.samples) == (written.runs, written.samples)
        assert [path.name for path in tmp_path.iterdir()] == ["r.json"]

    def test_a_row_that_is_measured_again_takes_the_place_of_the_old_one(self, tmp_path: Path) -> None:
        found = Results(tmp_path / "r.json")
        found.begin(self.run("ref"))
        for workload in ("short", "json"):
            for number in (1, 2):
                found.add(sample("ref", number, workload=workload))
        again = Results.read(tmp_path / "r.json")
        again.begin(self.run("ref", "new"))
        assert len(again.samples) == 4
        again.add(sample("ref", 1))
        again.add(sample("new", 1))
        read = Results.read(tmp_path / "r.json")
        assert [(each.workload, each.server, each.run) for each in read.samples] == [
            ("json", "ref", 0),
            ("json", "ref", 0),
            ("short", "ref", 1),
            ("short", "new", 1),
        ]
        again.begin(self.run("ref"))
        again.add(sample("ref", 1, workload="json"))
        assert len(Results.read(tmp_path / "r.json").runs) == 2, "a run without samples left is no longer told of"

    def test_know_which_rows_are_complete(self) -> None:
        found = results(sample("ref", 1), sample("new", 1), sample("ref", 2))
        assert found.complete(("", "short", 1), 1) and not found.complete(("", "short", 1), 2)
        assert not found.complete(("", "short", 8), 1)
        assert not results(sample("ref", 1, errors=1)).complete(("", "short", 1), 1)

    @pytest.mark.parametrize("text", ["", "{}", '{"runs": [], "samples": [{"x": 1}]}'])
    def test_of_another_kind_are_refused(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "r.json").write_text(text)
        with pytest.raises(ValueError, match=r"r\.json is no file of results"):
            Results.read(tmp_path / "r.json")


class TestSource:
    @given(lines=st.integers(20, 400), key=st.text(max_size=8))
    @settings(max_examples=30, deadline=None)
    def test_is_python_of_so_many_lines(self, lines: int, key: str) -> None:
        file = source.python_file(lines, key)
        compile(file, "service.py", "exec")
        assert len(file.splitlines()) == lines
        assert file == source.python_file(lines, key) != source.python_file(lines, key + "x")

    def test_copies_are_runs_of_eight_pieces(self) -> None:
        file = source.python_file(100, "a")
        assert source.copied(file[:500], file) > 0.95  # it ends within a word
        assert source.copied("", file) == source.copied("one two three", file) == 0
        assert source.copied("a b c d", "a b c d") == 0.0, "seven pieces may be chance"
        assert source.copied("a b c d e", "a b c d e") == 1.0
        assert source.copied("x y z a b c d e", "a b c d e") == pytest.approx(9 / 15)


class TestBusy:
    def test_keeps_a_core_busy_and_ends(self) -> None:
        with busy.one_core() as pid:
            until(lambda: cpu.by_process()[pid].seconds > 0.05)
        assert not Path(f"/proc/{pid}").exists()

    def test_ends_with_its_parent(self) -> None:
        code = "from benchlib import busy\nwith busy.one_core() as pid:\n    print(pid, flush=True)\n    import os; os._exit(0)"
        done = subprocess.run([sys.executable, "-c", code], cwd=SCRIPTS, capture_output=True, text=True, check=True, timeout=60)
        assert int(done.stdout) > 0  # what spins holds the other end of its output


class TestCpu:
    def test_splits_what_was_spent_between_two_readings(self) -> None:
        before = {1: cpu.Spent(1, 5.0), 10: cpu.Spent(10, 1.0), 99: cpu.Spent(1, 2.0)}
        after = {
            1: cpu.Spent(1, 6.0),
            10: cpu.Spent(10, 4.0),
            11: cpu.Spent(10, 0.5),
            12: cpu.Spent(1, 0.25),
            99: cpu.Spent(1, 9.0),
        }
        assert cpu.split(before, after, session=10, besides={99}) == (3.5, 1.25)

    def test_sees_this_process(self) -> None:
        assert cpu.by_process()[os.getpid()].session == os.getsid(0)


class TestPlanner:
    @pytest.mark.parametrize("name", WORKLOADS)
    def test_repeats_itself_in_a_round_and_differs_between_rounds(self, name: str) -> None:
        planner = Planner(seed=1)
        assert planner.script(name, 2, 1) == planner.script(name, 2, 1)
        texts = [
            prompt.user
            for plan in (planner.script(name, 2, 1), planner.script(name, 2, 2))
            for lane in plan.lanes
            for prompt in lane
        ]
        assert len(set(texts)) == len(texts)

    def test_shared_warm_repeats_the_system_prompt_of_its_round_only(self) -> None:
        planner = Planner(seed=1)
        systems = {
            (name, number): {prompt.system for lane in planner.script(name, 3, number).lanes for prompt in lane}
            for name in ("shared", "shared-warm")
            for number in (1, 2)
        }
        assert all(len(found) == 1 for found in systems.values())
        assert systems["shared", 1] == systems["shared-warm", 1] != systems["shared", 2]

    def test_long_has_its_own_clients(self) -> None:
        plan = Planner(seed=1).script("long", 5, 1)
        assert ([len(lane) for lane in plan.lanes], len(plan.arrivals)) == ([1, 1, 1, 1], 3)
        assert {prompt.max_tokens for lane in plan.lanes for prompt in lane} == {256}
        assert {len(prompt.user.split()) for prompt in plan.arrivals} == {2000}

    def test_json_answers_are_about_fewer_people_instead_of_cut(self) -> None:
        (whole,), (quick,) = (Planner(seed=1, quick=quick).script("json", 1, 1).lanes for quick in (False, True))
        assert {(each.people, each.max_tokens, each.request().exact) for each in whole} == {(6, 400, False)}
        assert {(each.people, each.max_tokens, each.request().exact) for each in quick} == {(2, 200, False)}

    def test_json_is_asked_for_with_a_schema(self) -> None:
        for name, has, has_not in (("json", "response_format", "ignore_eos"), ("short", "ignore_eos", "response_format")):
            body = Planner(seed=1).script(name, 1, 1).lanes[0][0].request().body
            assert has in body and has_not not in body

    def test_edits_are_of_files_of_their_own(self) -> None:
        scripts = [Planner(seed=1).script("edit", 4, number) for number in (1, 2)]
        files = [file for script in scripts for file in script.files()]
        assert len(set(files)) == len(files) == 8
        request = scripts[0].lanes[0][0].request()
        assert (request.max_tokens, request.exact, request.keep) == (400, True, True)
        example, answer, shown, begun = request.body["messages"]
        assert shown["content"].count("\n") > 300 and example["content"].count("\n") < 50
        assert [each["role"] for each in (answer, begun)] == ["assistant", "assistant"]
        assert "def new_" in answer["content"] and begun["content"] in shown["content"]

    @pytest.mark.parametrize(("clients", "conversations"), [(1, 10), (4, 3), (8, 2)])
    def test_conversations_take_turns_with_edited_answers(self, clients: int, conversations: int) -> None:
        for lane in Planner(seed=1).script("turns", clients, 1).lanes:
            assert [len(prompt.history) for prompt in lane] == [0] * conversations + [2] * conversations + [4] * conversations
            for number in range(conversations):
                first, second, third = ((*prompt.history, prompt.user) for prompt in lane[number::conversations])
                assert (second[:1], third[:3]) == (first, second)
                assert [len(text.split()) for text in third] == [640, 64, 40, 64, 40]

    def test_restart_asks_the_same_as_cold(self) -> None:
        planner = Planner(seed=1)
        assert planner.script("restart", 1, 1) == planner.script("cold", 1, 1) != planner.script("cold", 1, 2)
        assert len(planner.script("cold", 1, 1).lanes[0][0].user.split()) == 6000

    def test_a_request_says_how_many_answers_and_who_said_what(self) -> None:
        planner = Planner(seed=1)
        assert planner.script("n", 1, 1).lanes[0][0].request().body["n"] == 4
        shared, turns = (planner.script(name, 1, 1).lanes[0][-1].request().body["messages"] for name in ("shared", "turns"))
        assert [message["role"] for message in shared] == ["system", "user"]
        assert [message["role"] for message in turns] == ["user", "assistant", "user", "assistant", "user"]

    def test_quick_asks_for_a_quarter(self) -> None:
        planner = Planner(seed=1, quick=True)
        for name, words, tokens in (("short", 16, 16), ("prompt", 87, 16), ("cold", 1500, 4)):
            [[prompt]] = planner.script(name, 1, 1).lanes
            assert (len(prompt.user.split()), prompt.max_tokens) == (words, tokens)
        assert len(planner.script("turns", 1, 1).lanes[0]) == 3 * 5
        assert planner.script("edit", 1, 1).lanes[0][0].user.count("\n") < 90

    def test_many_clients_send_one_request_each(self) -> None:
        assert [len(Planner(seed=1).script("short", clients, 1).lanes[0]) for clients in (8, 32)] == [3, 1]
        assert len(Planner(seed=1, requests=2).script("short", 32, 1).lanes[0]) == 2

    def test_context_holds_prompt_and_answer(self) -> None:
        assert {name: workload.context() for name, workload in WORKLOADS.items()} == {
            "short": 256,
            "busy": 256,
            "prompt": 768,
            "shared": 1280,
            "shared-warm": 1280,
            "json": 768,
            "edit": 5120,
            "turns": 1280,
            "image": 1792,
            "image-shared": 1792,
            "n": 768,
            "long": 2560,
            "cold": 7168,
            "restart": 7168,
            "start": 256,
        }


class TestPictures:
    def test_are_the_same_for_a_key_and_whole_png_files(self) -> None:
        found = png(50, "a")
        assert found == png(50, "a") != png(50, "b")
        with Image.open(io.BytesIO(found)) as image:
            image.load()
            assert (image.size, image.mode) == ((50, 50), "RGB")

    @pytest.mark.parametrize(("name", "different"), [("image", 3), ("image-shared", 1)])
    def test_stand_before_the_text(self, name: str, different: int) -> None:
        lanes = Planner(0).script(name, 3, 1).plan().lanes
        contents = [lane[0].body["messages"][-1]["content"] for lane in lanes]
        assert [[part["type"] for part in content] for content in contents] == [["image_url", "text"]] * 3
        assert len({content[0]["image_url"]["url"] for content in contents}) == different
        assert len({content[1]["text"] for content in contents}) == 3

    def test_a_random_projector_fits_its_model(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        small = {"SIDE": 64, "WIDTH": 32, "HEADS": 2, "FEED_FORWARD": 32, "LAYERS": 1}
        for name, value in small.items():
            monkeypatch.setattr(random_projector, name, value)
        model = tiny_gguf.write(tmp_path / "model.gguf", "llama")
        random_projector.write(tmp_path / "mmproj.gguf", random_projector.width(model))
        with running(model, mmproj=str(tmp_path / "mmproj.gguf")) as engine:
            assert engine.info.modalities == {"text", "image"}
            assert len(engine.picture(20, 20, bytes(1200), "images[0]")) > 1

    def test_need_a_projector(self, script: Any, tmp_path: Path) -> None:
        model = tmp_path / "m.gguf"
        model.write_bytes(b"GGUF")
        given = ["--model", str(model), "--llama-server", "x", "--rows", "all"]
        args = flags.parse(given, "")
        assert not {name for name, _ in flags.rows(args, model)} & {"image", "image-shared"}
        args = flags.parse([*given, "--mmproj", str(model)], "")
        assert {("image", 8), ("image-shared", 8)} <= set(flags.rows(args, model))
        [server] = [each for each in flags.servers(args, model, tmp_path) if each.name == "locallab"]
        assert server._values["mmproj_flags"] == f"--mmproj {model}"


class TestStages:
    def test_rows_that_need_other_servers_are_apart(self, script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(rivals, "BEST", {"edit": "--spec-type ngram-simple"})
        found = script.stages([("short", 8), ("shared", 8), ("shared-warm", 8), ("edit", 8), ("json", 1), ("cold", 1)])
        assert [(stage.clients, stage.groups) for stage in found] == [
            (8, [["short"], ["shared", "shared-warm"]]),
            (8, [["edit"]]),
            (1, [["json"]]),
            (1, [["cold"]]),
        ]
        assert found[0].size == Size(8, 1280) and found[3].size == Size(1, 7168)

    def test_the_cpp_server_has_its_best_flags(self, script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(rivals, "BEST", {"short": "-np 2", "prompt:8": "-ub 128"})
        found = script.stages([("short", 1), ("prompt", 1), ("short", 8), ("prompt", 8)])
        assert [(stage.groups, stage.size.best) for stage in found] == [
            ([["short"]], "-np 2"),
            ([["prompt"]], ""),
            ([["short"]], "-np 2"),
            ([["prompt"]], "-ub 128"),
        ]

    def test_a_core_is_busy_during_the_turn_alone(
        self, script: Any, start_server: StartServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen = []

        @contextlib.contextmanager
        def one_core() -> Iterator[int]:
            seen.append("begun")
            yield os.getpid()
            seen.append("ended")

        monkeypatch.setattr(busy, "one_core", one_core)
        url = start_server()
        for workload, expected in (("short", []), ("busy", ["begun", "ended"])):
            assert script.main(["--quick", "--clients", "1", "--workloads", workload, "--url", f"one={url}"]) == 0
            assert seen == expected


class TestSize:
    @pytest.mark.parametrize(("scarcity", "total"), [(1, 8000), (4, 2000), (100, 1000)])
    def test_a_scarce_cache_holds_a_whole_context(self, scarcity: int, total: int) -> None:
        assert Size(8, 1000, scarcity).total == total


class TestFill:
    def test_usual_commands_stand_in_braces(self) -> None:
        filled = fill(expand("{locallab} --step-ms 9"), **dict.fromkeys(PLACEHOLDERS, "x"))
        assert (filled[:2], filled[-2:]) == (["locallab", "serve"], ["--step-ms", "9"])

    @pytest.mark.parametrize(("header", "flags"), [(b"tokenizer.chat_template", []), (b"", ["--chat-template", "chatml"])])
    def test_models_without_a_template_chat_in_chatml(self, tmp_path: Path, header: bytes, flags: list[str]) -> None:
        (tmp_path / "m.gguf").write_bytes(b"GGUF" + header)
        values = {**dict.fromkeys(PLACEHOLDERS, "x"), "mmproj_flags": "", "chat_flags": chat_flags(tmp_path / "m.gguf")}
        assert fill(expand("{locallab}"), **values)[17:] == flags

    def test_the_best_flags_are_arguments_of_their_own(self) -> None:
        values = {**dict.fromkeys(PLACEHOLDERS, "x"), "best": "-np 2 --kv-unified"}
        assert fill(expand("{llama-server} -v"), **values)[-4:] == ["-np", "2", "--kv-unified", "-v"]

    def test_keeps_values_with_spaces_whole(self) -> None:
        assert fill("run -m {model} 'a b'", model="my model.gguf") == ["run", "-m", "my model.gguf", "a b"]

    def test_names_an_unknown_placeholder(self) -> None:
        with pytest.raises(ValueError, match=r"unknown placeholder.*\{colour\}"):
            fill("run {colour}", model="m")


class TestComparison:
    def test_slower_server_has_the_lower_speed_and_the_longer_times(self, start_server: StartServer, tmp_path: Path) -> None:
        slow, fast = start_server("--first", "0.2", "--gap", "0.05"), start_server("--gap", "0.001")
        urls = ["--url", f"fast={fast}", "--url", f"slow={slow}"]
        result, done = compare(tmp_path, "--quick", "--workloads", "short", *urls)
        rows = rows_by_server(result)
        assert {name: rows[name]["errors"] for name in rows} == {"fast": 0, "slow": 0}
        assert rows["fast"]["ratios"]["tokens_per_s"] == 1.0
        assert rows["slow"]["ratios"]["tokens_per_s"] < 1.0
        assert all(rows["slow"]["ratios"][metric] > 1.0 for metric in ("ttft_p50", "ttft_p95", "itl_p50", "itl_p99"))
        assert [sample["tokens"] for sample in result["samples"]] == [32, 32]
        assert re.search(r"^\| short +\| +2 \| fast ", done.stdout, re.MULTILINE)
        assert "- server fast: `http://" in done.stdout

    def test_takes_turns_and_sends_every_server_the_same(self, start_server: StartServer, tmp_path: Path) -> None:
        records = [tmp_path / name for name in ("a", "b")]
        urls = [f"--url={record.name}={start_server('--record', str(record))}" for record in records]
        flags = ["--quick", "--rounds", "3", "--clients", "1", "--workloads", "shared-warm,shared"]
        result, _ = compare(tmp_path, *flags, *urls)
        assert [(s["round"], s["server"], s["workload"]) for s in result["samples"]] == [
            (number, server, workload)
            for number, order in ((1, "ab"), (2, "ba"), (3, "ab"))
            for server in order
            for workload in ("shared", "shared-warm")
        ]
        sent = [[json.loads(line) for line in record.read_text().splitlines()] for record in records]
        assert sent[0] == sent[1]
        warm_up, *requests = sent[0]
        assert warm_up["model"] == "scripted"
        systems = [request["messages"][0]["content"] for request in requests]
        assert systems == [system for system in dict.fromkeys(systems) for _ in range(2)]
        assert len(set(systems)) == 3

    def test_long_prompts_arrive_while_others_decode(self, start_server: StartServer, tmp_path: Path) -> None:
        record = tmp_path / "sent"
        url = start_server("--gap", "0.001", "--record", str(record))
        result, _ = compare(tmp_path, "--quick", "--workloads", "long", "--url", f"one={url}")
        [sample] = result["samples"]
        assert (sample["clients"], sample["requests"], sample["tokens"]) == (5, 5, 4 * 64 + 4)
        assert sample["prompt_tokens"] == 500
        sizes = [len(json.loads(line)["messages"][0]["content"].split()) for line in record.read_text().splitlines()]
        assert sizes[1:] == [16] * 4 + [500]

    def test_cached_tokens_and_several_answers_are_counted(self, start_server: StartServer, tmp_path: Path) -> None:
        result, done = compare(tmp_path, "--quick", "--workloads", "n", "--url", f"one={start_server('--cached', '0.5')}")
        [sample] = result["samples"]
        assert (sample["errors"], sample["wrong_lengths"], sample["tokens"], sample["cached"]) == (
            0,
            0,
            2 * 4 * 16,
            pytest.approx(0.5, abs=0.01),
        )
        assert re.search(r"^\| n +\| +2 \| one +\| +87 \| +49% \|", done.stdout, re.MULTILINE)

    @pytest.mark.parametrize(
        ("fault", "errors", "cut_off", "message"),
        [
            ("cut", 2, 2, "cut off: no [DONE]"),
            ("status", 2, 0, "HTTP 500: scripted failure"),
            ("event", 2, 0, "error event: scripted event"),
        ],
    )
    def test_counts_what_went_wrong(
        self, start_server: StartServer, tmp_path: Path, fault: str, errors: int, cut_off: int, message: str
    ) -> None:
        url = start_server("--fault", fault, "--every", "2")
        flags = ["--quick", "--workloads", "short", "--clients", "1", "--requests", "4", "--url", f"bad={url}"]
        result, done = compare(tmp_path, *flags, code=1)
        row = rows_by_server(result)["bad"]
        assert (row["errors"], row["cut_off"], row["requests"]) == (errors, cut_off, 4)
        assert result["samples"][0]["tokens"] == 2 * 16
        assert f"- bad: {message}" in done.stdout
        assert f"{errors}/4 WRONG" in done.stdout

    def test_counts_events_and_short_answers_without_usage(self, start_server: StartServer, tmp_path: Path) -> None:
        url = start_server("--no-usage", "--fault", "short")
        result, done = compare(tmp_path, "--quick", "--workloads", "short", "--url", f"brief={url}", code=1)
        row = rows_by_server(result)["brief"]
        assert (row["errors"], row["wrong_lengths"], row["prompt_tokens"]) == (0, 2, None)
        assert result["samples"][0]["tokens"] == 2 * 8
        assert "2 of 2 answers have another number of tokens than asked for" in done.stdout

    def test_tells_what_of_an_edited_file_was_copied(self, start_server: StartServer, tmp_path: Path) -> None:
        urls = [f"--url=own={start_server()}", f"--url=copy={start_server('--repeat')}"]
        result, done = compare(tmp_path, "--quick", "--workloads", "edit", "--clients", "1", *urls)
        assert [row["copied"] for row in result["rows"]] == [0.0, pytest.approx(1.0, abs=0.05)]
        assert "- copied: the share" in done.stdout

    def test_shows_again_what_was_written(self, start_server: StartServer, tmp_path: Path) -> None:
        urls = [f"--url={name}={start_server()}" for name in "ab"]
        _, done = compare(tmp_path, "--quick", "--workloads", "short", *urls)
        written, page = tmp_path / "result.json", tmp_path / "page.md"
        page.write_text("# Page\n\n<!-- results -->\n<!-- /results -->\n")
        shown = bench("--report", str(written), "--figure", str(tmp_path / "f.svg"), "--page", str(page))
        assert (shown.returncode, shown.stdout) == (0, done.stdout)
        assert done.stdout in page.read_text()
        assert (tmp_path / "f.svg").read_text() == figure.svg(Results.read(written))
        assert "short, 2 clients" in (tmp_path / "f.svg").read_text()


class TestLaunched:
    @pytest.fixture
    def model(self, tmp_path: Path) -> Path:
        path = tmp_path / "tiny model.gguf"
        path.write_bytes(b"GGUF")
        return path

    def command(self, *flags: str) -> str:
        return " ".join([shlex.quote(sys.executable), shlex.quote(str(SERVER)), "--port {port}", *flags])

    @pytest.mark.parametrize("exclusive", [[], ["--exclusive"]], ids=["together", "exclusive"])
    def test_starts_measures_and_stops_the_server(self, model: Path, tmp_path: Path, exclusive: list[str]) -> None:
        flags = ["--quick", "--workloads", "short", "--clients", "1,2", "--model", str(model), "--locallab", *exclusive]
        result, done = compare(tmp_path, *flags, "--variant", "locallab=" + self.command())
        assert [(row["clients"], row["errors"]) for row in result["rows"]] == [(1, 0), (2, 0)]
        assert all(sample["server_cpu"] >= 0 and sample["other_cpu"] >= 0 for sample in result["samples"])
        assert all(row["peak_mib"] > 1 for row in result["rows"])
        pids = [int(pid) for pid in re.findall(r"locallab: ready at .* \(pid (\d+)\)", done.stderr)]
        assert len(pids) == 2
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
        assert "- model: tiny model.gguf" in done.stdout

    def test_restarts_the_server_before_it_asks_again(self, model: Path, tmp_path: Path) -> None:
        record = tmp_path / "sent"
        remember = f"sh -c 'echo > {{scratch}}/start-$$; ls {{scratch}} >> {tmp_path}/seen; exec \"$@\"' sh "
        command = remember + self.command("--record", str(record))
        result, done = compare(
            tmp_path, "--quick", "--workloads", "restart", "--model", str(model), "--variant", f"one={command}"
        )
        assert [(row["workload"], row["clients"], row["errors"]) for row in result["rows"]] == [
            ("cold", 1, 0),
            ("restart", 1, 0),
        ]
        assert len(set(re.findall(r"one: ready at .* \(pid (\d+)\)", done.stderr))) == 2
        _, cold, _, again = [json.loads(line) for line in record.read_text().splitlines()]
        assert cold == again
        assert len((tmp_path / "seen").read_text().split()) == 3
        assert "- restart, one: TTFT p50 after the restart is" in done.stdout

    def test_a_start_counts_from_the_command(self, model: Path, tmp_path: Path) -> None:
        command = "sh -c 'sleep 0.3; exec \"$@\"' sh " + self.command("--first", "0.2")
        result, _ = compare(tmp_path, "--quick", "--workloads", "start", "--model", str(model), "--variant", f"one={command}")
        [row] = result["rows"]
        assert (row["workload"], row["clients"], row["errors"]) == ("start", 1, 0)
        assert row["values"]["ttft_p50"] >= 500 and row["values"]["peak_mib"] > 1

    def test_measures_the_rows_of_the_table_and_then_those_that_miss(self, model: Path, tmp_path: Path) -> None:
        binary = ["--llama-server", "x", "--model", str(model), "--model", str(SERVER), "--quick"]
        usual = [f"--variant={name}={self.command()} {best}" for name, best in (("llama-server", ""), ("locallab", ""))]
        result, _ = compare(tmp_path, "--rows", "all", "--workloads", "busy,shared-warm", *binary, *usual)
        rows = [("busy", 1), ("shared", 8), ("shared-warm", 8), ("busy", 8), ("shared", 32)]
        measured = [(row["workload"], row["clients"]) for row in result["rows"] if row["model"] == model.stem]
        assert sorted(dict.fromkeys(measured)) == sorted(rows)
        others = {(row["workload"], row["clients"]) for row in result["rows"] if row["model"] == SERVER.stem}
        assert others == {("shared", 8)}
        assert {row["server"] for row in result["rows"]} == {"llama-server", "locallab"}
        assert str(tmp_path) not in json.dumps(result["runs"][0]["facts"])
        again, done = compare(tmp_path, "--rows", "missing", "--workloads", "busy,start", *binary, *usual)
        assert {each["workload"] for each in again["samples"] if each["run"] == 1} == {"start"}
        assert len(again["samples"]) == len(result["samples"]) + 2
        assert "round 1/1 busy" not in done.stderr

    @pytest.mark.parametrize(
        ("command", "reason"),
        [
            ("{python} -c 'print(3141); raise SystemExit(7)'", "ended with exit code 7\n    3141"),
            ("no-such-program", "cannot start"),
        ],
        ids=["ends", "missing"],
    )
    def test_shows_a_server_that_does_not_start(
        self, start_server: StartServer, model: Path, tmp_path: Path, command: str, reason: str
    ) -> None:
        flags = ["--quick", "--workloads", "short", "--model", str(model), "--locallab", "--variant", f"locallab={command}"]
        result, done = compare(tmp_path, *flags, "--url", f"good={start_server()}", "--reference", "good", code=1)
        assert reason in done.stderr
        rows = rows_by_server(result)
        assert (rows["good"]["errors"], rows["locallab"]["errors"], rows["locallab"]["cut_off"]) == (0, 2, 0)
        assert "- locallab: ConnectionRefusedError" in done.stdout

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "terminate"])
    def test_interruption_stops_the_servers(self, model: Path, number: signal.Signals) -> None:
        flags = ["--quick", "--workloads", "short", "--model", str(model), "--locallab"]
        command = [sys.executable, str(SCRIPTS / "bench"), *flags, "--variant", "locallab=" + self.command("--first 60")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
            assert running.stderr
            ready = next(found for line in running.stderr if (found := re.search(r"ready at .* \(pid (\d+)\)", line)))
            os.kill(running.pid, number)
            output, errors = running.communicate()
        assert running.returncode == 130
        assert "interrupted" in errors
        assert "| workload" in output
        assert not Path(f"/proc/{ready[1]}").exists()


class TestFlags:
    @pytest.mark.parametrize(
        ("flags", "named"),
        [
            ([], "no server given"),
            (["--locallab"], "--model"),
            (["--url", "x"], "--url"),
            (["--url", "a=http://x", "--url", "a=http://y"], "'a' is taken"),
            (["--url", "a=http://x", "--workloads", "restart"], "--workloads: restart and start need servers that this"),
            (["--model", "/no/such.gguf", "--locallab"], "--model: no such file: /no/such.gguf"),
            (["--model", __file__, "--rows", "all"], "--rows: needs --llama-server PATH"),
            (["--model", __file__, "--llama-server", "x", "--rows", "missing"], "--rows missing: needs --json FILE"),
            (["--model", __file__, "--locallab", "--tune"], "--tune: needs --llama-server PATH"),
            (["--report", "/no/such.json"], "--report: no such file"),
            (["--report", __file__], "is no file of results of this script"),
            (["--figure", "x.svg"], "--figure: needs --report FILE"),
            (["--variant", "a"], "--variant: NAME=... is needed, got 'a'"),
            (["--model", __file__, "--variant", "a=x", "--variant", "a=y"], "--variant: each needs a name of its own"),
            (["--model", __file__, "--variant", "a={llama-server}"], "{llama-server} needs --llama-server PATH"),
            (["--url", "a=http://x", "--workloads", "tall"], "unknown workload 'tall'"),
            (["--url", "a=http://x", "--clients", "1,0"], "at least 1 is needed, got '0'"),
            (["--url", "a=http://x", "--timeout", "0"], "--timeout: more than 0"),
            (["--url", "a=http://x", "--reference", "b"], "--reference b: no such server; given: a"),
            (["--url", "a=http://x", "--json", "/no/such/place.json"], "--json: no such directory"),
            (
                ["--model", __file__, "--locallab", "--variant", "locallab=run {colour}"],
                "--variant: unknown placeholder",
            ),
        ],
    )
    def test_wrong_ones_are_named(self, flags: list[str], named: str) -> None:
        done = bench(*flags)
        assert done.returncode == 2
        assert named in done.stderr
