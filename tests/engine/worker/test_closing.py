"""What an engine leaves behind when it is closed: nothing, and every listener knows. The real engine, tiny models."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from locallab.engine import SamplingParams, TextEngine
from locallab.errors import EngineClosed
from locallab.pool.memory import Memory
from locallab.settings import EngineSettings
from tests.support import tiny_gguf
from tests.support.live_engine import Answer, ask, running, start
from tests.support.wait import PATIENCE, until

PROMPT = list(range(3, 43))
LONG = 200


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf.write(tmp_path_factory.mktemp("models") / "llama.gguf", "llama")


def threads_of(path: Path) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if path.name in thread.name]


def maps(path: Path) -> bool:
    """Whether the weights are part of this process's memory."""
    return any(mapped.path == str(path) for mapped in psutil.Process().memory_maps())


def test_a_closed_engine_takes_nothing(path: Path) -> None:
    with running(path) as engine:
        answer = ask(engine, PROMPT, 4)
        assert len(threads_of(path)) == 1
        engine.close()
        assert threads_of(path) == []
        engine.close()
        with pytest.raises(EngineClosed):
            engine.submit(PROMPT, SamplingParams(), Answer())
        with pytest.raises(EngineClosed):
            engine.tokenize("a", add_special=True, parse_special=True)
        engine.cancel(answer.id)
        assert engine.stats().completion_tokens == 4


def wait_until_closing(engine: TextEngine) -> None:
    """Returns when a `close` in another thread is on its way and can no longer be outrun."""
    with pytest.raises(EngineClosed):
        while True:
            engine.tokenize("a", add_special=True, parse_special=True)
    with pytest.raises(EngineClosed):
        engine.submit(PROMPT, SamplingParams(), Answer())


def test_closing_ends_what_runs_and_what_waits(path: Path) -> None:
    with running(path, parallel=2) as engine, ThreadPoolExecutor() as pool:
        answers = [start(engine, PROMPT, LONG, hold=True), *(start(engine, PROMPT, LONG) for _ in range(4))]
        answers[0].begun()
        closing = pool.submit(engine.close)
        wait_until_closing(engine)
        answers[0].release()
        closing.result(PATIENCE)
        assert [answer.reason for answer in answers] == ["cancelled"] * 5
        assert all(isinstance(answer.last and answer.last.error, EngineClosed) for answer in answers)
        assert 0 < len(answers[0].tokens) < LONG


def test_a_grace_lets_requests_finish(path: Path) -> None:
    with running(path, parallel=2) as engine, ThreadPoolExecutor() as pool:
        answers = [start(engine, PROMPT, LONG, hold=True), *(start(engine, PROMPT, LONG) for _ in range(2))]
        closing = pool.submit(engine.close, PATIENCE)
        wait_until_closing(engine)
        answers[0].release()
        closing.result(PATIENCE)
        assert [(answer.reason, len(answer.tokens)) for answer in answers] == [("length", LONG)] * 3


def test_a_second_close_can_cut_the_grace_short(path: Path) -> None:
    with running(path) as engine, ThreadPoolExecutor() as pool:
        answer = start(engine, PROMPT, LONG, hold=True).begun()
        patient = pool.submit(engine.close, PATIENCE)
        wait_until_closing(engine)
        hasty = pool.submit(engine.close)
        until(lambda: engine._worker.commands.qsize() == 2)
        answer.release()
        patient.result(PATIENCE)
        hasty.result(PATIENCE)
        assert answer.reason == "cancelled"


def test_closing_frees_native_memory(path: Path) -> None:
    """One load takes more than 8 MiB (its KV pool), so that even a leak now and then would be seen."""
    process = psutil.Process()
    sizes = []
    for _ in range(20):
        with running(path, kv_tokens=8192, kv_type="f32") as engine:
            ask(engine, PROMPT, 4)
            assert maps(path)
        assert not maps(path)
        Memory().give_back()  # glibc keeps some for each thread that was
        sizes.append(process.memory_info().rss)
    assert sizes[-1] - sizes[4] < 32 << 20


def test_a_command_that_cannot_be_carried_out_fails_what_runs_and_no_more(path: Path) -> None:
    with running(path) as engine:
        answers = [start(engine, PROMPT, LONG, hold=True), start(engine, PROMPT, LONG)]
        answers[0].begun()
        engine._worker._scheduler.finish = broken  # type: ignore[attr-defined]
        engine.cancel(answers[0].id)
        answers[0].release()
        assert [answer.reason for answer in answers] == ["error"] * 2
        del engine._worker._scheduler.finish  # type: ignore[attr-defined]
        ask(engine, PROMPT, 4)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_whose_thread_has_died_is_closed(path: Path) -> None:
    """What is freed with the thread is not to be used again."""
    with running(path) as engine:
        engine._worker._fail_all = broken  # type: ignore[attr-defined]
        engine._worker._scheduler.plan = broken  # type: ignore[attr-defined]
        start(engine, PROMPT, 4)
        engine._thread.join(PATIENCE)
        with pytest.raises(EngineClosed):
            engine.tokenize("a", add_special=True, parse_special=True)
        with pytest.raises(EngineClosed):
            engine.submit(PROMPT, SamplingParams(), Answer())
        assert not maps(path)


def broken(*_: object) -> None:
    raise RuntimeError("broken")


def test_engines_side_by_side(path: Path) -> None:
    """Each has a pool and a thread of its own; closing one leaves the other running."""
    settings = EngineSettings(context=256, threads=1, gpu_layers=0)
    first, second = TextEngine(path, settings), TextEngine(path, settings)
    try:
        answer = start(second, PROMPT, LONG)
        ask(first, PROMPT, 4)
        first.close()
        assert len(threads_of(path)) == 1
        assert (answer.reason, len(answer.tokens)) == ("length", LONG)
    finally:
        first.close()
        second.close()


@pytest.mark.parametrize("architecture", tiny_gguf.ARCHITECTURES)
def test_requests_from_many_threads(architecture: str, tmp_path: Path) -> None:
    """Clients come and go; every one gets its last event, and nothing stays behind."""
    path = tiny_gguf.write(tmp_path / f"{architecture}.gguf", architecture)

    def client(number: int) -> str:
        answer = start(engine, PROMPT[: 5 + number], 30)
        if number % 3 == 0:
            engine.cancel(answer.id)
        return answer.reason

    with running(path, cache_tokens=128, cache_ram_mib=1) as engine:
        with ThreadPoolExecutor(8) as pool:
            reasons = list(pool.map(client, range(30)))
        assert all(reason == "length" for number, reason in enumerate(reasons) if number % 3)
        assert set(reasons[::3]) <= {"length", "cancelled"}
        stats = engine.stats()
        assert (stats.running, stats.waiting) == (0, 0)
        assert stats.kv_used == stats.cached
