from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

from clustersim import cost_of_table, record, report, traces  # noqa: E402
from clustersim.costs import Costs  # noqa: E402
from clustersim.replica import PUBLISHED, Cache, Job, Replica  # noqa: E402
from clustersim.routers import ROUTERS, ConsistentHashing  # noqa: E402
from clustersim.simulation import Cluster, Outcome, Simulation  # noqa: E402

from locallab.cluster.routing import ANSWER, Route  # noqa: E402
from tests.support import tiny_gguf  # noqa: E402

COSTS = Costs.read()
FLAT = Costs((0.0, 0.01, 0.0), (0.0, 0.001, 0.0))
"""Each token of an answer takes 10 ms, each of a prompt 1 ms."""


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPTS / "cluster-sim", *flags], capture_output=True, text=True, timeout=120)


def play(workload: str, router: str, replicas: int = 8, seed: int = 0) -> tuple[float, Outcome]:
    trace = traces.make(workload, replicas, 40, 0.7, seed, COSTS)
    return trace.ideal, Simulation(trace, Cluster(replicas), router, seed, COSTS).run()


def request(digests: tuple[int, ...], prompt: int, answer: int) -> traces.Request:
    return traces.Request(Route(digests, (prompt - 1) * 4), traces.TOKENS[: len(digests)], answer, 0.0)


class TestComparison:
    @pytest.mark.parametrize("workload", ["turns", "shared"])
    def test_the_table_finds_more_prefixes_than_what_does_not_look_for_them(self, workload: str) -> None:
        ideal, ours = play(workload, "prefixes")
        for router in ("random", "round-robin", "least-loaded"):
            _, other = play(workload, router)
            assert ours.hit_rate > other.hit_rate * 1.4
            assert ours.ttft_p50 < other.ttft_p50 and ours.ttft_p99 < other.ttft_p99
        assert ours.hit_rate > ideal * (0.95 if workload == "turns" else 0.88)

    @pytest.mark.parametrize("workload", ["shared", "burst", "mixed"])
    def test_it_balances_what_consistent_hashing_does_not(self, workload: str) -> None:
        _, ours = play(workload, "prefixes")
        ideal, hashing = play(workload, "hashing")
        assert hashing.hit_rate == pytest.approx(ideal, abs=0.01)
        assert ours.balance < hashing.balance and ours.ttft_p99 < hashing.ttft_p99
        assert ours.tokens_per_second > hashing.tokens_per_second

    def test_a_burst_is_computed_by_few(self) -> None:
        assert play("burst", "prefixes", 32)[1].copies < play("burst", "random", 32)[1].copies // 2
        assert play("burst", "hashing", 32)[1].copies == 1

    @pytest.mark.parametrize("workload", traces.WORKLOADS)
    def test_every_request_is_answered(self, workload: str) -> None:
        trace = traces.make(workload, 3, 20, 0.7, 0, COSTS)
        made = Simulation(trace, Cluster(3), "prefixes", 0, COSTS)
        assert made.run().requests == sum(map(len, trace.sessions)) >= 60
        for job, _ in made.done:
            assert job.came < job.first <= made.now and job.said >= job.request.answer and job.computed == job.request.prompt
        assert [(each.load, each.requests, len(each._expected)) for each in made.replicas] == [(0, 0, 0)] * 3

    def test_one_replica_finds_what_one_cache_does(self) -> None:
        trace = traces.make("turns", 1, 60, 0.2, 0, COSTS)
        found = Simulation(trace, Cluster(1, cache=10**9), "random", 0, COSTS).run()
        assert found.hit_rate == pytest.approx(trace.ideal, abs=0.005) and found.balance == 1

    def test_a_small_cache_forgets(self) -> None:
        trace = traces.make("turns", 2, 40, 0.7, 0, COSTS)
        rates = [Simulation(trace, Cluster(2, cache=size), "prefixes", 0, COSTS).run().hit_rate for size in (1000, 8000, 64000)]
        assert rates == sorted(rates) and rates[0] < rates[2] / 2


class TestReplica:
    def test_an_answer_takes_its_prompt_and_its_tokens(self) -> None:
        replica = Replica(FLAT, 8, 1000)
        ends = replica.arrive(Job(request((), 101, 11), 0, 0, 0.0), 0.0)
        assert ends == pytest.approx(0.101) and replica.load == 101 + ANSWER
        done, ends = replica.end(0.101)
        assert (done, ends) == ([], pytest.approx(0.201)) and replica.load == ANSWER
        done, ends = replica.end(0.201)
        assert ends is None and done[0].first == pytest.approx(0.101) and replica.busy == pytest.approx(0.201)

    def test_what_arrives_waits_for_the_end_of_the_step(self) -> None:
        replica = Replica(FLAT, 8, 1000)
        replica.arrive(Job(request((), 100, 50), 0, 0, 0.0), 0.0)
        assert replica.end(0.1)[1] == pytest.approx(0.1 + 0.49)
        ends = replica.arrive(Job(request((), 100, 2), 1, 0, 0.123), 0.123)
        assert ends == pytest.approx(0.13)
        assert replica.arrive(Job(request((), 100, 2), 2, 0, 0.124), 0.124) == pytest.approx(0.13)
        assert replica.end(0.13)[1] == pytest.approx(0.13 + 0.01 + 0.1)

    def test_what_finds_no_place_waits_for_an_answer(self) -> None:
        replica = Replica(FLAT, 1, 1000)
        replica.arrive(Job(request((), 100, 11), 0, 0, 0.0), 0.0)
        replica.end(0.1)
        assert replica.arrive(Job(request((), 100, 11), 1, 0, 0.1), 0.1) is None
        assert replica.end(0.2)[1] == pytest.approx(0.3)

    def test_a_prefix_is_computed_once(self) -> None:
        replica = Replica(FLAT, 8, 1000)
        jobs = [Job(request((1, 2, 3), 101, 2), at, 0, 0.0) for at in range(2)]
        ends = [replica.arrive(job, 0.0) for job in jobs]
        assert ends == [pytest.approx(0.101), None] and replica.load == 101 + 5 + 2 * ANSWER
        replica.end(0.101)
        assert [job.cached for job in jobs] == [0, 96]
        assert replica.publish().held == {1, 2, 3}

    @given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 8)), max_size=30), st.integers(0, 20))
    def test_a_cache_keeps_what_was_used_last(self, used: list[tuple[int, int]], digests: int) -> None:
        cache = Cache(digests * 32)
        last: dict[int, int] = {}
        for at, (name, count) in enumerate(used):
            drawn = tuple(100 * name + edge for edge in range(count))
            cache.use(request(drawn, 400, 1))
            assert drawn[0] in cache.latest() or not digests
            last |= {digest: 100 * at - edge for edge, digest in enumerate(drawn)}
        kept = sorted(last, key=lambda digest: -last[digest])[:digests]
        assert {digest for digest in last if digest in cache} == set(kept) == cache.latest()
        assert cache.size == 32 * len(kept) <= cache.capacity


class TestCosts:
    def test_a_fit_finds_what_steps_take(self) -> None:
        rng = random.Random(0)
        steps = []
        for _ in range(200):
            answers, cells, prompt, work = rng.randint(1, 8), rng.uniform(0, 1e4), rng.randint(1, 512), rng.uniform(0, 1e6)
            noise = rng.uniform(0.9, 1.1) if rng.random() < 0.9 else 5
            steps.append((answers, 0, (0.002 + 0.004 * answers + 1e-6 * cells) * noise, cells, 0.0))
            steps.append((0, prompt, (0.01 + 0.003 * prompt + 1e-6 * work) * noise, 0.0, work))
        found = record.fit(steps)
        costs = Costs(tuple(found["decode"]), tuple(found["prompt"]))
        for answers, cells in ((1, 1000), (8, 8000)):
            assert costs.decoding(answers, cells) == pytest.approx(0.002 + 0.004 * answers + 1e-6 * cells, rel=0.1)
        for tokens, start in ((64, 0), (512, 0), (512, 1000)):
            exact = 0.01 + 0.003 * tokens + 1e-6 * tokens * (start + tokens / 2)
            assert costs.computing(tokens, start) == pytest.approx(exact, rel=0.1)

    def test_an_engine_is_recorded(self, tmp_path: Path) -> None:
        found = record.record(tiny_gguf.write(tmp_path / "tiny.gguf", "llama"), together=(1, 2), lengths=(16, 64))
        (tmp_path / "costs.json").write_text(json.dumps(found))
        assert found["steps"] > 4 * record.ANSWER * record.ROUNDS * 0.9
        assert Costs.read(tmp_path / "costs.json").computing(64, 0) > 0

    def test_what_was_recorded_is_in_the_range_of_a_machine(self) -> None:
        assert 1e-3 < COSTS.decoding(1, 100) < 0.1 and 1e-3 < COSTS.computing(512, 0) / 512 < 0.1
        assert COSTS.computing(512, 4096) > COSTS.computing(512, 0)
        assert COSTS.computing(COSTS.fitting(0.2), 0) == pytest.approx(0.2, rel=0.25)

    @pytest.mark.parametrize("text", ["", "[]", '{"decode": [1, 2, 3]}', '{"decode": [0, 1], "prompt": [0, 1, 0]}'])
    def test_another_file_is_refused(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "costs.json").write_text(text)
        with pytest.raises(ValueError, match=r"costs\.json: needs decode and prompt"):
            Costs.read(tmp_path / "costs.json")


class TestTable:
    def test_its_cost_is_measured(self) -> None:
        found = cost_of_table.measure(2)
        assert 2 * PUBLISHED <= found.digests < 3 * PUBLISHED and found.mib > found.digests * 40 / 2**20
        assert min(found.digest_us, found.request_us, found.unpack_us, found.publish_us) > 0
        assert "| replicas |" in report.table(report.cells([found]))

    def test_all_fronts_have_the_same_ring(self) -> None:
        replicas = [Replica(FLAT, 8, 1000) for _ in range(8)]
        job = Job(request((2**63, 7), 100, 2), 0, 0, 0.0)
        assert len({ConsistentHashing(replicas, random.Random(at)).choose(0, job) for at in range(9)}) == 1


class TestScript:
    FLAGS = ("--workloads", "turns,shared", "--replicas", "3", "--requests", "8")

    def test_the_same_flags_give_the_same_table(self, tmp_path: Path) -> None:
        first, again = (run(*self.FLAGS, "--json", str(tmp_path / f"{at}.json")) for at in "ab")
        assert first.returncode == 0 and first.stdout == again.stdout
        assert (tmp_path / "a.json").read_text() == (tmp_path / "b.json").read_text()
        found = json.loads((tmp_path / "a.json").read_text())
        assert [row["router"] for row in found] == [*ROUTERS] * 2
        assert len(first.stdout.splitlines()) == 2 + len(found)
        assert run(*self.FLAGS, "--seed", "1").stdout != first.stdout

    def test_lists_make_rows_and_columns(self) -> None:
        shown = run(*self.FLAGS, "--routers", "prefixes", "--fronts", "1,2", "--period", "0.5,5").stdout.splitlines()
        assert len(shown) == 2 + 8 and all(f" {name} |" in shown[0] for name in ("fronts", "period"))
        assert " fronts |" not in run(*self.FLAGS, "--routers", "prefixes").stdout

    def test_what_is_done_is_shown_when_interrupted(self) -> None:
        command = [sys.executable, SCRIPTS / "cluster-sim", "--workloads", "turns", "--replicas", "2,512"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr and process.stdout
            assert process.stderr.readline() == "turns, 2 replicas, random: done\n"
            process.send_signal(signal.SIGINT)
            shown, _ = process.communicate(timeout=60)
        assert process.returncode == 130 and "| random " in shown and " 512 |" not in shown

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (["--workloads", "turns,none"], "--workloads: unknown name 'none'; known: turns, shared"),
            (["--routers", "best"], "--routers: unknown name 'best'"),
            (["--replicas", "0"], "--replicas: a number of at least 1 is needed, got '0'"),
            (["--period", "1,x"], "--period: invalid list value: '1,x'"),
            (["--load", "-1"], "--load: more than 0 is needed"),
            (["--costs", "none.json"], "--costs: [Errno 2] No such file or directory: 'none.json'"),
            (["--json", "none/a.json"], "--json: no such directory: none"),
            (["--nothing"], "unrecognized arguments: --nothing"),
        ],
    )
    def test_a_wrong_flag_is_one_line(self, flags: list[str], message: str) -> None:
        shown = run(*flags)
        assert shown.returncode == 2 and shown.stdout == ""
        assert shown.stderr.count("\n") == 1 and message in shown.stderr
