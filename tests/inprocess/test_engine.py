from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import locallab
from locallab.errors import (
    ConfigError,
    ContextLengthExceeded,
    EngineClosed,
    EngineDied,
    InvalidField,
    ModelLoadError,
    UnknownModel,
)
from locallab.inprocess import launch
from locallab.settings import EngineSettings
from tests.support import tiny_gguf
from tests.support.wait import until

COUNTING = "Counting: 1, 2, 3, 4, 5, 6, 7,"
LETTERS = "The alphabet: a, b, c, d, e, f, g,"
ASKED = [{"role": "user", "content": "Write the alphabet."}]
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 8}
FEW: dict[str, Any] = {"temperature": 0, "max_tokens": 3}
"""So few tokens that no two are as likely: where they are, a batch may choose another than a request alone."""


@pytest.fixture(scope="module")
def engine(model_path: Path) -> Iterator[locallab.Engine]:
    with locallab.Engine(str(model_path), context=512, threads=2) as engine:
        yield engine


def idle(engine: locallab.Engine) -> bool:
    """Waits until nothing runs."""
    until(lambda: not engine._loaded.engine.stats().running)
    return True


def test_logprobs(engine: locallab.Engine) -> None:
    answer = engine.generate("1, 2, 3, 4, 5, 6,", max_tokens=2, temperature=0, logprobs=1, prompt_logprobs=True)
    assert b"".join(each.piece for each in answer.logprobs).decode() == answer and answer.prompt_logprobs
    assert engine.generate("hi", max_tokens=1).logprobs == ()


def test_an_unknown_setting_fails_by_name_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"^start\(\): unknown setting 'contxt'; did you mean context\?$"):
        locallab.start("smollm2:135m", contxt=512)
    with pytest.raises(ConfigError, match=r"^start\(\): max_deaths: only `locallab serve` has a supervisor"):
        locallab.start("smollm2:135m", max_deaths=3)
    with pytest.raises(ConfigError, match=r"^start\(\): openmp: llama.cpp is loaded already; set LOCALLAB_OPENMP before"):
        locallab.start("smollm2:135m", openmp="gnu")
    with pytest.raises(ConfigError, match=r"^Engine\(\): unknown setting 'port'; "):
        locallab.Engine("smollm2:135m", port=1)


def test_a_wrong_value_fails_before_anything_is_loaded() -> None:
    with pytest.raises(ConfigError, match=r"^start\(\): parallel: "):
        locallab.start("smollm2:135m", parallel=0)
    with pytest.raises(ConfigError, match=r"^Engine\(\): kv_type: "):
        locallab.Engine("smollm2:135m", kv_type="f11")


def test_keywords_go_before_the_environment_before_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALLAB_CONTEXT", "256")
    monkeypatch.setenv("LOCALLAB_PARALLEL", "3")
    found = launch.layers(EngineSettings, "start()", {"context": 512, "port": 1, "batch": None}, {"parallel": 9, "queue": 7})
    resolved = locallab.inprocess.server.settings.resolve(EngineSettings, *found)
    assert (resolved.context, resolved.parallel, resolved.queue, resolved.batch) == (512, 3, 7, EngineSettings().batch)


def test_a_text_is_completed(engine: locallab.Engine) -> None:
    answer = engine.generate(COUNTING, **GREEDY)
    assert isinstance(answer, str) and answer.strip().startswith("8, 9")
    assert answer.finish_reason == "length"
    assert answer.usage.completion_tokens == 8


def test_a_list_of_texts_is_computed_together(engine: locallab.Engine) -> None:
    alone = [engine.generate(text, **GREEDY) for text in (COUNTING, LETTERS)]
    steps = engine._loaded.engine.stats().steps
    together = engine.generate([COUNTING, LETTERS], **GREEDY)
    assert together == alone
    assert engine._loaded.engine.stats().steps - steps < 16
    assert engine.generate([]) == []


def test_a_list_may_be_longer_than_a_server_would_take(engine: locallab.Engine) -> None:
    assert engine._loaded.engine._settings.queue > 100_000 > EngineSettings().queue


def test_conversations_are_answered_through_the_template(engine: locallab.Engine) -> None:
    one = engine.chat(ASKED, **GREEDY)
    template = f"<|im_start|>user\n{ASKED[0]['content']}<|im_end|>\n<|im_start|>assistant\n"
    assert one and one.usage.prompt_tokens > engine.generate(ASKED[0]["content"], **GREEDY).usage.prompt_tokens
    assert template in engine._loaded.template.render(locallab.inprocess.requests.normalize(ASKED))
    assert engine.chat([ASKED, ASKED], **FEW) == [engine.chat(ASKED, **FEW)] * 2


def test_markup_in_a_message_is_text(engine: locallab.Engine) -> None:
    said = [{"role": "user", "content": "<|im_end|>"}]
    markup = engine._loaded.engine.tokenize("<|im_end|>", add_special=False, parse_special=True)
    assert len(markup) == 1
    assert locallab.inprocess.requests.tokens(engine._loaded, "<|im_end|>").count(markup[0]) == 1
    plain = locallab.inprocess.requests.tokens(engine._loaded, ASKED).count(markup[0])
    assert locallab.inprocess.requests.tokens(engine._loaded, said).count(markup[0]) == plain


def test_a_chat_has_no_limit_but_the_model_and_the_context(engine: locallab.Engine) -> None:
    assert locallab.inprocess.requests.params({}, plain=False).max_tokens is None
    assert locallab.inprocess.requests.params({}, plain=True).max_tokens == 512


@pytest.mark.parametrize("prompt", [COUNTING, ASKED], ids=["text", "conversation"])
def test_a_stream_is_the_same_answer_in_pieces(engine: locallab.Engine, prompt: Any) -> None:
    pieces = list(engine.stream(prompt, **FEW))
    assert len(pieces) > 2
    whole = engine.generate(prompt, **FEW) if isinstance(prompt, str) else engine.chat(prompt, **FEW)
    assert "".join(pieces) == whole


def test_the_asynchronous_ways_give_the_same(engine: locallab.Engine) -> None:
    async def ask() -> tuple[Any, ...]:
        streamed = "".join([piece async for piece in engine.astream(COUNTING, **GREEDY)])
        together = asyncio.gather(engine.agenerate([COUNTING, LETTERS], **GREEDY), engine.achat(ASKED, **FEW))
        return streamed, *(await together), await engine.achat([ASKED], **FEW)

    streamed, texts, chat, chats = asyncio.run(ask())
    assert texts == engine.generate([COUNTING, LETTERS], **GREEDY)
    assert streamed == texts[0]
    assert chats == [chat] == [engine.chat(ASKED, **FEW)]


def test_leaving_a_stream_ends_its_answer(engine: locallab.Engine) -> None:
    stream = engine.stream(COUNTING, ignore_eos=True, max_tokens=400)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert idle(engine)


def test_cancelling_ends_the_answers(engine: locallab.Engine) -> None:
    async def ask() -> None:
        task = asyncio.create_task(engine.agenerate([COUNTING] * 2, ignore_eos=True, max_tokens=400))
        async for _ in engine.astream(COUNTING, ignore_eos=True, max_tokens=400):
            task.cancel()
            break
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(ask())
    assert idle(engine)


@pytest.mark.parametrize(
    ("sampling", "reason"),
    [
        ({"temprature": 1}, "temprature: unknown; known: temperature, "),
        ({"temperature": -1}, "temperature: must be at least 0"),
        ({"max_tokens": 0}, "max_tokens: must be at least 1, got 0"),
    ],
)
def test_wrong_sampling_is_named(engine: locallab.Engine, sampling: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidField, match=f"^{re.escape(reason)}"):
        engine.generate(COUNTING, **sampling)


def test_lists_and_dicts_are_taken_as_the_engine_wants_them() -> None:
    params = locallab.inprocess.requests.params(
        {"stop": "x", "logit_bias": {3: 1.0}, "stop_token_ids": [1], "seed": None}, True
    )
    assert (params.stop, params.logit_bias, params.stop_token_ids) == (("x",), ((3, 1.0),), (1,))
    assert locallab.inprocess.requests.params({"stop": ["x", "y"]}, True).stop == ("x", "y")


def test_one_prompt_that_is_refused_lets_none_run(engine: locallab.Engine) -> None:
    with pytest.raises(ContextLengthExceeded):
        engine.generate([COUNTING, "word " * 600], ignore_eos=True)
    assert idle(engine)
    with pytest.raises(InvalidField, match="messages: is empty"):
        engine.chat([])


def test_closing_ends_what_runs(model_path: Path) -> None:
    engine = locallab.Engine(str(model_path), context=512, threads=1)
    stream = engine.stream(COUNTING, ignore_eos=True, max_tokens=400)
    next(stream)
    engine.close()
    with pytest.raises(EngineClosed):
        list(stream)
    engine.close()
    with pytest.raises(EngineClosed):
        engine.generate(COUNTING)


def test_facts(engine: locallab.Engine) -> None:
    assert engine.info.context == 512
    assert engine.info.architecture == "llama"


def test_a_model_that_is_none(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(100))
    before = {thread.name for thread in threading.enumerate()}
    with pytest.raises(UnknownModel, match="did you mean smollm2:135m"):
        locallab.Engine("smollm2:135")
    with pytest.raises(ModelLoadError):
        locallab.Engine(str(broken))
    assert {thread.name for thread in threading.enumerate()} <= before


def test_an_engine_that_has_failed_is_loaded_again(tmp_path: Path) -> None:
    """By plain calls and in an event loop."""

    def broken(*_: object) -> None:
        raise RuntimeError("boom")

    async def again() -> int:
        return (await engine.agenerate("a", max_tokens=2, ignore_eos=True)).usage.completion_tokens

    path = tiny_gguf.write(tmp_path / "tiny.gguf", "llama")
    with locallab.Engine(str(path), context=256, threads=1) as engine:
        for ask in (
            lambda: engine.generate("a", max_tokens=2, ignore_eos=True).usage.completion_tokens,
            lambda: asyncio.run(again()),
        ):
            engine._loaded.engine._worker._scheduler.plan = broken  # type: ignore[attr-defined]
            with pytest.raises(EngineDied, match="boom"):
                engine.generate("a", max_tokens=2)
            until(lambda: bool(engine._pool.failures.reasons))
            assert ask() == 2
