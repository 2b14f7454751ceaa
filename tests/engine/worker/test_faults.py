"""Faults at every seam of the worker: what fails for one request ends that one alone, and the others' answers are the same."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import llama_cpp
import pytest

from locallab.engine import SamplingParams
from locallab.engine.context import InvalidBatch
from locallab.engine.request import TokenEvent
from locallab.errors import EngineClosed, EngineDied, EngineFailure
from tests.support import tiny_gguf
from tests.support.fake_llama import FakeGuide, answer
from tests.support.live_engine import Answer, ask, running, start
from tests.support.wait import PATIENCE, until
from tests.support.worker_rig import Rig

PROMPT = list(range(3, 43))
PROMPTS = [[1, 2, 3], [1, 2, 11], [7] * 20]
COUNT = 8


def boom(*_: object, **__: object) -> Any:
    raise RuntimeError("boom")


def victim_of(rig: Rig, **params: Any) -> int:
    """Submit a request between two others."""
    ids = [rig.submit(PROMPTS[0], COUNT), rig.submit(PROMPTS[1], COUNT, **params), rig.submit(PROMPTS[2], COUNT)]
    return ids[1]


def others_are_whole(rig: Rig, lost: int | None = None) -> None:
    for id, prompt in rig.prompts.items():
        if id != lost:
            assert (rig.tokens(id), rig.last(id).finish_reason) == (answer(prompt, COUNT), "length")


SEAMS: dict[str, tuple[str, dict[str, Any]]] = {
    "its sampler is made": ("begin", {}),
    "the next token is sampled": ("advance", {}),
    "text and stop strings": ("accept", {}),
    "the prompt's log probabilities": ("score", {"logprobs": 0, "prompt_logprobs": True}),
    "log probabilities": ("logprobs.see", {"logprobs": 0}),
    "the text of a token": ("text.feed", {}),
    "the end of its text": ("text.finish", {}),
    "its sampler is freed": ("close", {}),
    "a token is drawn": ("_sampler.draw", {}),
}


@pytest.mark.parametrize(("seam", "params"), SEAMS.values(), ids=SEAMS)
def test_what_fails_for_one_request_ends_that_one_alone(seam: str, params: dict[str, Any]) -> None:
    rig = Rig()
    cleared = watch(rig)
    lost = victim_of(rig, **params)
    if seam.startswith("_sampler"):
        while rig.worker._sequences[lost].answer._sampler is None:
            rig.step()
    part, _, name = seam.rpartition(".")
    target: Any = rig.worker._sequences[lost].answer
    setattr(getattr(target, part) if part else target, name, boom)
    rig.drain()
    assert rig.last(lost).finish_reason == "error"
    assert str(rig.last(lost).error) == "internal error: boom"
    others_are_whole(rig, lost)
    assert (rig.ended, cleared) == (3, [])


def watch(rig: Rig) -> list[None]:
    """Return a list that grows whenever the context is cleared."""
    cleared: list[None] = []
    clear = rig.context.clear
    rig.context.clear = lambda: (cleared.append(None), clear())  # type: ignore[method-assign, assignment]
    return cleared


@pytest.mark.parametrize("name", ["restrict", "accept", "take"])
def test_a_grammar_that_fails_ends_its_request(name: str) -> None:
    rig = Rig()
    cleared = watch(rig)
    guide = FakeGuide(PROMPTS[1])
    lost = victim_of(rig, guide=guide)
    setattr(guide, name, boom)
    rig.drain()
    assert rig.last(lost).finish_reason == "error"
    others_are_whole(rig, lost)
    assert cleared == []


@pytest.mark.parametrize("seam", ["_tell", "_want_mask"])
def test_so_does_what_the_worker_does_for_it(seam: str) -> None:
    rig = Rig()
    lost = victim_of(rig)
    sequence, does = rig.worker._sequences[lost], getattr(rig.worker, seam)
    setattr(rig.worker, seam, lambda of, *rest: boom() if sequence in (of, getattr(of, "sequence", None)) else does(of, *rest))
    rig.drain()
    assert rig.last(lost).finish_reason == "error"
    others_are_whole(rig, lost)


def test_a_listener_that_raises_hears_only_its_end(tmp_path: Path) -> None:
    """Nothing more is computed for it, and the others miss nothing."""
    heard: list[TokenEvent] = []

    def listener(event: TokenEvent) -> None:
        heard.append(event)
        if len(event.token_ids):
            raise ValueError("boom")

    with running(tiny_gguf.write(tmp_path / "llama.gguf", "llama")) as engine:
        alone = ask(engine, PROMPT, 30)
        first = start(engine, PROMPT, 30, hold=True)
        engine.submit(PROMPT, SamplingParams(temperature=0, ignore_eos=True, max_tokens=200), listener)
        first.release()
        assert first.ended().tokens == alone.tokens
        until(lambda: bool(heard) and heard[-1].finish_reason == "error")
        assert str(heard[-1].error) == "internal error: boom"
        assert [bool(event.token_ids) for event in heard].count(True) == 1
        assert heard[-1].usage is not None and heard[-1].usage.completion_tokens < 200


def test_a_post_that_fails_once_loses_nothing() -> None:
    rig = Rig()
    victim_of(rig)
    post, failures = rig.worker._post, iter([True, False, True])

    def posting(events: Any) -> None:
        if len(events) > 1 and next(failures, False):
            boom()
        post(events)

    rig.worker._post = posting
    rig.drain()
    others_are_whole(rig)


def test_a_request_whose_events_cannot_be_posted_ends() -> None:
    rig = Rig()
    lost = victim_of(rig)
    listener, post = rig.worker._sequences[lost].listener, rig.worker._post
    rig.worker._post = lambda events: boom() if any(each is listener for each, _ in events) else post(events)
    while rig.worker._sequences:
        while not rig.worker.commands.empty():
            rig.worker._carry_out(rig.worker.commands.get())
        rig.step()
    rig.worker._hand_out()
    assert rig.events[lost] == [] and rig.scheduler.running == []
    others_are_whole(rig, lost)
    assert rig.context.decoded < sum(len(prompt) + COUNT for prompt in PROMPTS)


@pytest.mark.parametrize("layout", ["unified", "streams"])
@pytest.mark.parametrize("times", [1, 2])
def test_when_llama_decode_fails_all_is_computed_again(layout: Any, times: int) -> None:
    """A failure that does not come again costs time alone; one that does costs the request that it comes for."""
    rig = Rig(layout=layout, cells=512)
    cleared = watch(rig)
    victim_of(rig)
    rig.step()
    rig.step()
    rig.context.fails["crash"] = times
    rig.drain()
    errors = [id for id in rig.events if rig.last(id).finish_reason == "error"]
    assert (len(errors), len(cleared)) == (times - 1, times)
    others_are_whole(rig, *errors)


@pytest.mark.parametrize("error", [InvalidBatch("-1"), EngineFailure("2"), EngineFailure("-3"), RuntimeError("boom")])
def test_a_request_that_cannot_be_computed_is_found_among_others(error: Exception) -> None:
    """An invalid batch changes nothing in the context: that one is kept."""
    rig = Rig(cells=512)
    lost = victim_of(rig)
    cleared, decode = watch(rig), rig.context.decode
    sequence = rig.worker._sequences[lost]

    def decoding(batch: Any) -> int:
        if sequence.slot in batch._sequences[: batch.raw.n_tokens]:
            raise error
        return decode(batch)

    rig.context.decode = decoding  # type: ignore[method-assign]
    while rig.worker._sequences:
        rig.worker._try_step()
    rig.worker._hand_out()
    assert rig.last(lost).finish_reason == "error" and isinstance(rig.last(lost).error, EngineFailure)
    others_are_whole(rig, lost)
    assert len(cleared) == (0 if isinstance(error, InvalidBatch) else 2)


CODES = [-1, 2, -2, -3]


@pytest.mark.parametrize("code", CODES)
def test_every_code_of_llama_decode(tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the real llama.cpp, which says it has failed in the middle of several answers."""
    decode, codes = llama_cpp.llama_decode, iter([0, 0, 0, code])

    def decoding(context: Any, batch: Any) -> int:
        return next(codes, 0) or decode(context, batch)

    with running(tiny_gguf.write(tmp_path / "llama.gguf", "llama")) as engine:
        expected = [ask(engine, PROMPT[i:], 20).tokens for i in range(3)]
        answers = [start(engine, PROMPT, 20, hold=True), *(start(engine, PROMPT[i:], 20) for i in (1, 2))]
        answers[0].begun()
        monkeypatch.setattr(llama_cpp, "llama_decode", decoding)
        answers[0].release()
        assert [each.reason for each in answers] == ["length"] * 3
        assert [each.tokens for each in answers] == expected
        assert next(codes, None) is None


@pytest.mark.parametrize("seam", ["plan", "commit"])
def test_a_step_that_fails_as_a_whole_is_made_again(seam: str) -> None:
    rig = Rig(cells=512)
    victim_of(rig)
    does, failures = getattr(rig.scheduler, seam), iter([False, False, True])
    setattr(rig.scheduler, seam, lambda *of: boom() if next(failures, False) else does(*of))
    while rig.worker._sequences:
        rig.worker._try_step()
    rig.worker._hand_out()
    others_are_whole(rig)


@pytest.mark.parametrize("call", ["save", "restore", "remove"])
def test_a_move_that_fails_costs_time_alone(call: str) -> None:
    """In memory that lets nothing be shared: prefixes are taken over, saved and restored."""
    rig = Rig(layout="streams", cells=512, parallel=4, host_bytes=1 << 16)
    prompt = [*range(1, 40)]
    rig.ask(prompt)
    rig.rest()
    does = getattr(rig.context, call)

    def failing(slot: int, *rest: Any) -> Any:
        if call == "remove" and not (rest and rest[0]):
            return does(slot, *rest)
        if call == "remove":
            raise EngineFailure(f"sequence {slot} cannot be cut")
        return boom()

    setattr(rig.context, call, failing)
    for tail in ([41, 42, 43], [44, 45, 46], [47, 48, 49]):
        ids = [rig.submit([*prompt[:30], *tail, i], COUNT) for i in range(1, 6)]
        rig.drain()
        rig.rest()
        assert [rig.tokens(id) for id in ids] == [answer(rig.prompts[id], COUNT) for id in ids]


def test_an_engine_that_is_broken_ends_with_a_last_event_for_everyone(tmp_path: Path) -> None:
    deaths: list[EngineDied] = []
    path = tiny_gguf.write(tmp_path / "llama.gguf", "llama")
    with running(path, parallel=2) as engine:
        engine.on_death(deaths.append)
        answers = [start(engine, PROMPT, 200, hold=True), *(start(engine, PROMPT, 200) for _ in range(4))]
        answers[0].begun()
        engine._worker._scheduler.plan = boom  # type: ignore[attr-defined]
        answers[0].release()
        assert [each.reason for each in answers] == ["error"] * 5
        assert all(isinstance(each.last and each.last.error, EngineDied) for each in answers)
        engine._thread.join(PATIENCE)
        assert [str(death).partition(":")[0] for death in deaths] == ["the model's engine has failed"]
        with pytest.raises(EngineClosed):
            engine.submit(PROMPT, SamplingParams(), Answer())
        engine.on_death(deaths.append)
        assert len(deaths) == 2 and engine.stats().running == 0
        engine.close()


def test_whoever_comes_while_it_ends_hears_of_it_too(tmp_path: Path) -> None:
    """A request is either refused, or has its last event."""
    refused, answers = threading.Event(), []

    def client() -> None:
        while not refused.is_set():
            heard = Answer()
            try:
                engine.submit(PROMPT, SamplingParams(max_tokens=4), heard)
            except (EngineClosed, EngineFailure):
                refused.set()
            else:
                answers.append(heard)

    with running(tiny_gguf.write(tmp_path / "llama.gguf", "llama"), queue=100_000) as engine:
        first = start(engine, PROMPT, 200, hold=True).begun()
        clients = [threading.Thread(target=client) for _ in range(2)]
        for each in clients:
            each.start()
        until(lambda: len(answers) > 50)
        engine._worker._scheduler.plan = fatal  # type: ignore[attr-defined]
        first.release()
        for each in clients:
            each.join(PATIENCE)
        assert {each.reason for each in answers} <= {"error", "length", "stop"}
        assert isinstance(first.ended().last and first.last.error, EngineDied)  # type: ignore[union-attr]


def fatal(*_: object) -> None:
    raise SystemExit("boom")


def test_closing_does_not_count_as_dying(tmp_path: Path) -> None:
    deaths: list[EngineDied] = []
    with running(tiny_gguf.write(tmp_path / "llama.gguf", "llama")) as engine:
        engine.on_death(deaths.append)
        ask(engine, PROMPT, 4)
    assert deaths == []
