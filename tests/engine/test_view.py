"""What a view says of an engine, step by step, and who makes it."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from pathlib import Path
from unittest import mock

import pytest

from locallab.engine import Caller, SamplingParams
from locallab.engine import view as views
from locallab.engine.commands import Look
from locallab.engine.view import MOST_WAITING, EngineView, RequestView, view_of
from tests.support import tiny_gguf
from tests.support.live_engine import ask, running, start
from tests.support.wait import PATIENCE
from tests.support.worker_rig import Rig

ANN = Caller(id="key:ann", name="ann")


def look(rig: Rig) -> EngineView:
    return view_of(rig.scheduler, rig.worker.totals)


def states(rig: Rig) -> dict[int, str]:
    return {each.id: each.state for each in look(rig).requests}


def test_a_request_waits_is_read_and_answered() -> None:
    rig = Rig(parallel=1, batch=16)
    first = rig.submit([1, 2] * 20, 8, caller=ANN)
    assert states(rig) == {first: "waiting"}
    rig.step()
    second = rig.submit([3] * 20, 8)
    [reading, waits] = look(rig).requests
    assert (reading.state, reading.prompt_tokens, reading.computed_tokens, reading.answer_tokens) == ("prefill", 40, 16, 0)
    assert reading.ttft_seconds is None and reading.age_seconds > 0 and reading.caller.name == "ann"
    assert (waits.id, waits.state, waits.computed_tokens) == (second, "waiting", 0)
    rig.step()
    rig.step()
    [answers, _] = look(rig).requests
    assert (answers.state, answers.computed_tokens, answers.answer_tokens) == ("decode", 40, 1)
    assert answers.ttft_seconds is not None and answers.ttft_seconds <= answers.age_seconds
    rig.drain()
    assert (look(rig).running, look(rig).waiting, look(rig).requests) == (0, 0, ())


def test_cached_tokens_are_told_and_not_counted_as_computed() -> None:
    rig = Rig(batch=16)
    rig.ask([1] * 30, 1)
    before = look(rig).prompt_tokens
    assert before == 30
    id = rig.submit([1] * 30 + [2] * 20, 4)
    rig.step()
    [request] = look(rig).requests
    assert (request.id, request.cached_tokens, request.state) == (id, 30, "prefill")
    assert look(rig).prompt_tokens == before + request.computed_tokens - 30
    rig.drain()
    assert look(rig).prompt_tokens == before + 20


def test_tokens_of_prompts_are_counted_as_they_are_computed() -> None:
    rig = Rig(chunk=8)
    for at in range(4):
        rig.submit([at + 1] * 40, 3)
    seen = [0]
    while rig.worker._sequences:
        rig.step()
        seen.append(look(rig).prompt_tokens)
    assert seen == sorted(seen) and seen[-1] == 160 and len(set(seen)) > 10
    assert look(rig).answer_tokens == 12 and look(rig).steps == rig.worker.totals.steps


def test_a_long_queue_is_shown_in_part() -> None:
    rig = Rig(parallel=1)
    for _ in range(MOST_WAITING + 20):
        rig.submit([1], 1)
    view = look(rig)
    assert view.waiting == MOST_WAITING + 20 and len(view.requests) == MOST_WAITING


def test_a_view_that_fails_harms_nobody() -> None:
    rig = Rig()
    id = rig.submit([1] * 20, 4)
    rig.step()
    asked: Future[EngineView] = Future()
    with mock.patch.object(views, "kv_map", side_effect=RuntimeError("broken")):
        rig.worker._carry_out(Look(asked, view_of))
    assert isinstance(asked.exception(0), RuntimeError)
    rig.drain()
    assert len(rig.tokens(id)) == 4


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tiny_gguf.write(tmp_path / "llama.gguf", "llama")


def test_the_engines_own_thread_makes_it(path: Path) -> None:
    """One that rests answers at once, and so does one that works; a closed one never."""
    made_by: list[str] = []

    def noted(*arguments: object) -> EngineView:
        made_by.append(threading.current_thread().name)
        return view_of(*arguments)  # type: ignore[arg-type]

    with running(path, cache_tokens=200) as engine, mock.patch("locallab.engine.engine.view_of", noted):
        assert engine.view().result(PATIENCE).requests == ()
        answer = start(engine, [5] * 20, 8, hold=True).begun()
        asked = engine.view()
        answer.release()
        [request] = asked.result(PATIENCE).requests
        assert isinstance(request, RequestView) and request.id == answer.id and request.state == "decode"
        answer.ended()
        ask(engine, [7] * 20, 2)
        view = engine.view().result(PATIENCE)
        assert view.kv is not None and view.kv.idle > 0 and view.kv.live == 0
        assert set(made_by) == {"engine llama.gguf"}
        engine.close()
        assert not engine.view().done()


def test_what_the_cache_has_of_prompts_is_told(path: Path) -> None:
    with running(path, cache_tokens=200) as engine:
        prompts = [([5] * 20, ""), ([5] * 10 + [6] * 10, ""), ([5] * 20, "another"), ([7] * 20, "")]
        assert engine.held(prompts).result(PATIENCE) == [0, 0, 0, 0]
        ask(engine, [5] * 20, 2)
        assert engine.held(prompts).result(PATIENCE) == [19, 10, 0, 0]
        assert engine.owner(SamplingParams(), Caller(owner="me")) == "me"
