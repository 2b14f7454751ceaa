from __future__ import annotations

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

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

from benchlib import cpu, report, summary  # noqa: E402
from benchlib.client import Answer, ChatClient, ResponseReader  # noqa: E402
from benchlib.load import Outcome  # noqa: E402
from benchlib.prompts import WORKLOADS, Planner  # noqa: E402
from benchlib.servers import PLACEHOLDERS, Size, expand, fill  # noqa: E402
from benchlib.summary import Turn  # noqa: E402

SERVER = SCRIPTS.parent / "tests/support/sse_server.py"
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


def bench(*flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPTS / "bench"), *flags], capture_output=True, text=True, timeout=120)


def compare(tmp_path: Path, *flags: str) -> tuple[dict[str, Any], subprocess.CompletedProcess[str]]:
    done = bench(*flags, "--json", str(tmp_path / "result.json"))
    assert done.returncode == 0, done.stderr
    return json.loads((tmp_path / "result.json").read_text()), done


def rows_by_server(result: dict[str, Any]) -> dict[str, Any]:
    return {row["server"]: row for row in result["rows"]}


def answer(arrivals: list[float], *, started: float = 0.0, max_tokens: int = 2, **values: Any) -> Answer:
    return Answer(max_tokens, started, arrivals={0: arrivals} if arrivals else {}, status=200, **values)


def sample(server: str, round_: int, **values: Any) -> summary.Sample:
    outcome = Outcome([answer([0.5, 0.6])], [], 1.0, 0.0)
    measured = summary.measure(outcome, Turn(workload="short", clients=1, round=round_, server=server))
    return summary.Sample(**{**{name: getattr(measured, name) for name in summary.Sample.__slots__}, **values})


class TestPercentile:
    @pytest.mark.parametrize(
        ("values", "percent", "expected"),
        [
            ([], 50, None),
            ([7.0], 99, 7.0),
            ([3.0, 1.0, 2.0], 50, 2.0),
            ([1.0, 2.0], 50, 1.5),
            ([0.0, 10.0], 95, 9.5),
            ([1.0, 4.0], 100, 4.0),
        ],
        ids=["none", "one", "middle", "between", "near the end", "largest"],
    )
    def test_interpolates(self, values: list[float], percent: float, expected: float | None) -> None:
        assert summary.percentile(values, percent) == expected


class TestMeasure:
    def test_counts_whole_answers_alone(self) -> None:
        broken = answer([0.1], cut_off=True, error="cut off: no [DONE]")
        short = answer([0.2], usage_tokens=1, prompt_tokens=9)
        outcome = Outcome([broken, short, answer([0.4, 0.5], usage_tokens=2, prompt_tokens=11)], [], 2.0, 0.1)
        measured = summary.measure(outcome, TURN)
        assert (measured.requests, measured.errors, measured.cut_off, measured.short_answers) == (3, 1, 1, 1)
        assert (measured.tokens, measured.tokens_per_s, measured.prompt_tokens) == (3, 1.5, 10)
        assert measured.ttft_p50 == pytest.approx(300)
        assert measured.messages == {"cut off: no [DONE]": 1}

    def test_takes_ttft_from_arrivals_and_gaps_from_decoders(self) -> None:
        outcome = Outcome([answer([1.0, 1.2])], [answer([5.0, 9.0], started=3.0)], 10.0, 0.1)
        measured = summary.measure(outcome, TURN)
        assert measured.ttft_p50 == pytest.approx(2000)
        assert measured.itl_p99 == measured.itl_max == pytest.approx(200)
        assert measured.tokens == 4

    def test_takes_the_times_of_each_choice(self) -> None:
        both = Answer(4, 0.0, 2, arrivals={0: [1.0, 1.5], 1: [3.0, 3.5]}, status=200)
        measured = summary.measure(Outcome([both], [], 10.0, 0.1), TURN)
        assert (measured.ttft_p50, measured.itl_max, measured.tokens) == (2000, 500, 4)

    def test_sums_up_what_the_servers_cache_had(self) -> None:
        told = [answer([0.1], prompt_tokens=tokens, cached_tokens=cached) for tokens, cached in ((100, 0), (300, 200))]
        for answers, share in (([*told, answer([0.1], prompt_tokens=100)], 0.5), ([answer([0.1])], None)):
            assert summary.measure(Outcome(answers, [], 1.0, 0.1), TURN).cached == share

    def test_knows_no_times_when_nothing_was_whole(self) -> None:
        outcome = Outcome([answer([], error="HTTP 500: no")], [], 1.0, 0.0)
        measured = summary.measure(outcome, TURN)
        assert (measured.tokens_per_s, measured.ttft_p50, measured.itl_p99) == (0.0, None, None)


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
        head, rule, line = summary.table(summary.summarise([sample("ref", 1)], "ref")).splitlines()
        assert len({text.count("|") for text in (head, rule, line)}) == 1
        assert line.split("|")[1:4] == [" short    ", "       1 ", " ref    "]


class TestReport:
    def test_says_which_turns_are_noisy(self) -> None:
        samples = [sample("ref", 1, other_cpu=0.05), sample("ref", 2, other_cpu=0.5), sample("ref", 3)]
        assert "1 of 3 turns are noisy" in report.markdown(samples, "ref", 3, {})
        assert "noisy" not in report.markdown(samples[:1], "ref", 1, {})

    def test_compares_a_restart_with_the_cold_prompt_of_its_round(self) -> None:
        times = {"cold": (1000.0, 2000.0, 4000.0), "restart": (100.0, 100.0, 100.0)}
        samples = [
            sample("ref", number, workload=workload, ttft_p50=time)
            for workload, each in times.items()
            for number, time in enumerate(each)
        ]
        assert "- restart, ref: TTFT p50 after the restart is 0.05 of the cold one" in report.markdown(samples, "ref", 3, {})
        assert "after the restart" not in report.markdown(samples[:3], "ref", 3, {})


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
        assert cpu.split(before, after, session=10, besides=99) == (3.5, 1.25)

    def test_sees_this_process(self) -> None:
        assert cpu.by_process()[os.getpid()].session == os.getsid(0)


class TestResponseReader:
    HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    CHUNKED = HEAD + b"7\r\ndata: a\r\n4;x=y\r\n\r\n\r\n\r\n9\r\ndata: b\n\n\r\n0\r\n\r\n"

    def test_gives_the_same_lines_wherever_the_bytes_are_split(self) -> None:
        for place in range(len(self.CHUNKED)):
            reader = ResponseReader()
            lines = reader.feed(self.CHUNKED[:place]) + reader.feed(self.CHUNKED[place:])
            assert lines == [b"data: a", b"", b"data: b", b""], place
            assert (reader.status, reader.ended, reader.body) == (200, True, b"")

    def test_ends_at_the_content_length(self) -> None:
        reader = ResponseReader()
        assert reader.feed(b"HTTP/1.1 500 No\r\nContent-Length: 4\r\n\r\nno") == []
        assert not reader.ended
        reader.feed(b"pe")
        assert (reader.status, reader.body, reader.ended) == (500, b"nope", True)

    def test_reads_a_body_without_length_until_the_connection_ends(self) -> None:
        reader = ResponseReader()
        assert reader.feed(b"HTTP/1.1 200 OK\r\n\r\na\nb") == [b"a"]
        assert not reader.ended

    def test_refuses_what_is_not_http(self) -> None:
        with pytest.raises(ValueError, match="not HTTP"):
            ResponseReader().feed(b"SSH-2.0\r\n\r\n")


class TestAnswer:
    @pytest.mark.parametrize(
        ("data", "arrivals"),
        [
            (b'{"choices":[{"delta":{"content":"a"}}]}', 1),
            (b'{"choices": [{"delta": {"content": "a"}}]}', 1),
            (b'{"choices":[{"delta":{"reasoning_content":"a"}}]}', 1),
            (b'{"choices":[{"delta":{"content":""}}]}', 0),
            (b'{"choices":[{"delta":{"role":"assistant","content":null}}]}', 0),
            (b'{"choices":[{"delta":{"refusal":"\\"content\\":\\"a\\""}}]}', 0),
        ],
        ids=["text", "spaces", "reasoning", "empty", "null", "quoted"],
    )
    def test_counts_events_with_text(self, data: bytes, arrivals: int) -> None:
        taken = Answer(1, 0.0, status=200)
        taken.take(b"data: " + data, 1.0)
        assert sum(map(len, taken.arrivals.values())) == arrivals

    def test_keeps_choices_apart_and_waits_for_all(self) -> None:
        taken = Answer(4, 0.0, 2, status=200)
        for now, index in enumerate((1, 0, 1)):
            taken.take(b'data: {"choices":[{"index": %d,"delta":{"content":"\\"index\\":7"}}]}' % index, now)
        assert taken.arrivals == {1: [0, 2], 0: [1]}
        taken.take(b'data: {"choices":[{"index":1,"finish_reason":"length"}]}', 3.0)
        taken.take(b"data: [DONE]", 3.0)
        taken.close(4.0)
        assert taken.error == "cut off: no finish_reason"

    def test_prefers_the_servers_count_of_tokens(self) -> None:
        taken = Answer(3, 0.0, status=200)
        taken.take(b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":"length"}]}', 1.0)
        assert taken.tokens == 1
        usage = b'{"prompt_tokens":7,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":5}}'
        taken.take(b'data: {"choices":[],"usage":%s}' % usage, 1.0)
        taken.take(b"data: [DONE]", 1.0)
        taken.close(2.0)
        assert (taken.tokens, taken.prompt_tokens, taken.cached_tokens, taken.finish_reasons) == (3, 7, 5, {0: "length"})
        assert (taken.error, taken.cut_off) == (None, False)

    @pytest.mark.parametrize(("n", "tokens"), [(1, 5), (2, 8)], ids=["of one choice: running", "of several: one each"])
    def test_takes_several_counts_of_tokens(self, n: int, tokens: int) -> None:
        taken = Answer(8, 0.0, n, status=200)
        for count in (3, 5):
            taken.take(b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":%d}}' % count, 1.0)
        assert (taken.tokens, taken.prompt_tokens) == (tokens, 7)

    @pytest.mark.parametrize(
        ("lines", "error"),
        [
            ([b'data: {"choices":[{"finish_reason":"stop"}]}'], "cut off: no [DONE]"),
            ([b": ping", b"data: [DONE]"], "cut off: no finish_reason"),
        ],
        ids=["no done", "no finish reason"],
    )
    def test_that_stops_early_is_cut_off(self, lines: list[bytes], error: str) -> None:
        taken = Answer(1, 0.0, status=200)
        for line in lines:
            taken.take(line, 1.0)
        taken.close(2.0)
        assert (taken.error, taken.cut_off) == (error, True)


class TestPlanner:
    @pytest.mark.parametrize("name", WORKLOADS)
    def test_repeats_itself_in_a_round_and_differs_between_rounds(self, name: str) -> None:
        planner = Planner(seed=1)
        assert planner.plan(name, 2, 1) == planner.plan(name, 2, 1)
        texts = [
            prompt.user
            for plan in (planner.plan(name, 2, 1), planner.plan(name, 2, 2))
            for lane in plan.lanes
            for prompt in lane
        ]
        assert len(set(texts)) == len(texts)

    def test_shared_warm_repeats_the_system_prompt_of_its_round_only(self) -> None:
        planner = Planner(seed=1)
        systems = {
            (name, number): {prompt.system for lane in planner.plan(name, 3, number).lanes for prompt in lane}
            for name in ("shared", "shared-warm")
            for number in (1, 2)
        }
        assert all(len(found) == 1 for found in systems.values())
        assert systems["shared", 1] == systems["shared-warm", 1] != systems["shared", 2]

    def test_long_has_its_own_clients(self) -> None:
        plan = Planner(seed=1).plan("long", 5, 1)
        assert ([len(lane) for lane in plan.lanes], len(plan.arrivals)) == ([1, 1, 1, 1], 3)
        assert {prompt.max_tokens for lane in plan.lanes for prompt in lane} == {256}
        assert {len(prompt.user.split()) for prompt in plan.arrivals} == {2000}

    def test_json_answers_are_never_shortened(self) -> None:
        (lane,) = Planner(seed=1, quick=True).plan("json", 1, 1).lanes
        assert {(prompt.as_json, prompt.max_tokens) for prompt in lane} == {(True, 400)}

    def test_json_is_asked_for_with_a_schema(self) -> None:
        client = ChatClient("http://127.0.0.1:1", "m", None, 1.0)
        for name, has, has_not in (("json", b"response_format", b"ignore_eos"), ("short", b"ignore_eos", b"response_format")):
            request = client._request(Planner(seed=1).plan(name, 1, 1).lanes[0][0].body())
            assert has in request and has_not not in request

    @pytest.mark.parametrize(("clients", "conversations"), [(1, 10), (4, 3), (8, 2)])
    def test_conversations_take_turns_with_edited_answers(self, clients: int, conversations: int) -> None:
        for lane in Planner(seed=1).plan("turns", clients, 1).lanes:
            assert [len(prompt.history) for prompt in lane] == [0] * conversations + [2] * conversations + [4] * conversations
            for number in range(conversations):
                first, second, third = ((*prompt.history, prompt.user) for prompt in lane[number::conversations])
                assert (second[:1], third[:3]) == (first, second)
                assert [len(text.split()) for text in third] == [640, 64, 40, 64, 40]

    def test_restart_asks_the_same_as_cold(self) -> None:
        planner = Planner(seed=1)
        assert planner.plan("restart", 1, 1) == planner.plan("cold", 1, 1) != planner.plan("cold", 1, 2)
        assert len(planner.plan("cold", 1, 1).lanes[0][0].user.split()) == 6000

    def test_a_request_says_how_many_answers_and_who_said_what(self) -> None:
        planner = Planner(seed=1)
        assert planner.plan("n", 1, 1).lanes[0][0].body()["n"] == 4
        shared, turns = (planner.plan(name, 1, 1).lanes[0][-1].body()["messages"] for name in ("shared", "turns"))
        assert [message["role"] for message in shared] == ["system", "user"]
        assert [message["role"] for message in turns] == ["user", "assistant", "user", "assistant", "user"]

    def test_quick_asks_for_shorter_answers(self) -> None:
        plan = Planner(seed=1, requests=1, quick=True).plan("short", 2, 1)
        assert [[prompt.max_tokens for prompt in lane] for lane in plan.lanes] == [[16], [16]]

    def test_context_holds_prompt_and_answer(self) -> None:
        assert {name: workload.context() for name, workload in WORKLOADS.items()} == {
            "short": 256,
            "prompt": 768,
            "shared": 1280,
            "shared-warm": 1280,
            "json": 768,
            "turns": 1280,
            "n": 768,
            "long": 2560,
            "cold": 7168,
            "restart": 7168,
        }


class TestSize:
    @pytest.mark.parametrize(("scarcity", "total"), [(1, 8000), (4, 2000), (100, 1000)])
    def test_a_scarce_cache_holds_a_whole_context(self, scarcity: int, total: int) -> None:
        assert Size(8, 1000, scarcity).total == total


class TestFill:
    def test_usual_commands_stand_in_braces(self) -> None:
        filled = fill(expand("{locallab} --step-ms 9"), **dict.fromkeys(PLACEHOLDERS, "x"))
        assert (filled[:2], filled[-2:]) == (["locallab", "serve"], ["--step-ms", "9"])

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
        assert sample["prompt_tokens"] == 2000
        sizes = [len(json.loads(line)["messages"][0]["content"].split()) for line in record.read_text().splitlines()]
        assert sizes[1:] == [40] * 4 + [2000]

    def test_cached_tokens_and_several_answers_are_counted(self, start_server: StartServer, tmp_path: Path) -> None:
        result, done = compare(tmp_path, "--quick", "--workloads", "n", "--url", f"one={start_server('--cached', '0.5')}")
        [sample] = result["samples"]
        assert (sample["errors"], sample["short_answers"], sample["tokens"], sample["cached"]) == (0, 0, 2 * 4 * 16, 0.5)
        assert re.search(r"^\| n +\| +2 \| one +\| +350 \| +50% \|", done.stdout, re.MULTILINE)

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
        result, done = compare(tmp_path, *flags)
        row = rows_by_server(result)["bad"]
        assert (row["errors"], row["cut_off"], row["requests"]) == (errors, cut_off, 4)
        assert result["samples"][0]["tokens"] == 2 * 16
        assert f"- bad: {message}" in done.stdout
        assert f"{errors}/4" in done.stdout

    def test_counts_events_and_short_answers_without_usage(self, start_server: StartServer, tmp_path: Path) -> None:
        url = start_server("--no-usage", "--fault", "short")
        result, done = compare(tmp_path, "--quick", "--workloads", "short", "--url", f"brief={url}")
        row = rows_by_server(result)["brief"]
        assert (row["errors"], row["short_answers"], row["prompt_tokens"]) == (0, 2, None)
        assert result["samples"][0]["tokens"] == 2 * 8
        assert "2 of 2 answers are too short" in done.stdout


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
        result, done = compare(tmp_path, *flags, "--url", f"good={start_server()}", "--reference", "good")
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
            (["--url", "a=http://x", "--workloads", "restart"], "--workloads: restart needs servers that this script launches"),
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
