"""Sampling on the real model: each parameter changes what it should, and a fixed seed fixes the draws."""

from __future__ import annotations

import dataclasses
import queue
from collections.abc import Iterator
from pathlib import Path

import pytest

from locallab.engine import SamplingParams, TextEngine, TokenEvent
from locallab.errors import ContextLengthExceeded, InvalidField, Overloaded
from locallab.settings import EngineSettings
from tests.support.live_engine import running, start

PROMPT = "The quick brown fox"


@dataclasses.dataclass
class Asked:
    text: str
    tokens: list[int]
    end: TokenEvent


@pytest.fixture(scope="module")
def engine(model_path: Path) -> Iterator[TextEngine]:
    """Caches nothing, so that a prompt is always computed in the same way: the rounding decides near ties of this model."""
    engine = TextEngine(model_path, EngineSettings(context=512, parallel=8, kv_tokens=2048, cache_tokens=0, cache_ram_mib=0))
    yield engine
    engine.close()


def ask(engine: TextEngine, prompt: str = PROMPT, **params: object) -> Asked:
    events: queue.SimpleQueue[TokenEvent] = queue.SimpleQueue()
    tokens = engine.tokenize(prompt, add_special=True, parse_special=True)
    engine.submit(tokens, SamplingParams(**{"max_tokens": 12, "ignore_eos": True} | params), events.put)  # type: ignore[arg-type]
    seen: list[TokenEvent] = []
    while not seen or seen[-1].finish_reason is None:
        seen.append(events.get(timeout=120))
    return Asked("".join(e.text for e in seen), [t for e in seen for t in e.token_ids], seen[-1])


def test_greedy_is_what_the_chain_draws_with_top_k_1(engine):
    greedy = ask(engine, temperature=0)
    assert ask(engine, temperature=1.5, top_k=1).tokens == greedy.tokens
    assert ask(engine, temperature=1.5, top_k=0, top_p=1e-6, min_p=0.0).tokens == greedy.tokens
    assert ask(engine, temperature=1.5, top_k=0, top_p=1.0, min_p=1.0).tokens == greedy.tokens
    assert ask(engine, temperature=0.01, top_k=0, top_p=1.0, min_p=0.0, seed=3).tokens == greedy.tokens


def test_a_fixed_seed_fixes_the_draws_and_another_gives_others(engine):
    free = {"temperature": 1.5, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    first = ask(engine, seed=1, **free)
    assert ask(engine, seed=1, **free).tokens == first.tokens
    assert ask(engine, seed=2, **free).tokens != first.tokens
    assert ask(engine, **free).tokens != ask(engine, **free).tokens
    assert ask(engine, seed=-1, **free).tokens == ask(engine, seed=-1, **free).tokens


def test_typical_p_narrows_the_draw(engine):
    free = {"temperature": 1.5, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 1}
    assert ask(engine, typical_p=0.05, **free).tokens != ask(engine, **free).tokens


def test_logit_bias_forbids_and_forces(engine):
    greedy = ask(engine, temperature=0)
    first = greedy.tokens[0]
    assert first not in ask(engine, temperature=0, logit_bias=((first, -100.0),)).tokens[:1]
    assert ask(engine, temperature=0, logit_bias=((first, 100.0),)).tokens == [first] * 12


@pytest.mark.parametrize("penalty", [{"repeat_penalty": 3.0}, {"frequency_penalty": 2.0}, {"presence_penalty": 2.0}], ids=str)
def test_penalties_break_a_repetition(engine, penalty):
    prompt = "one two one two one two one two one two one two"
    plain = ask(engine, prompt, temperature=0)
    assert ask(engine, prompt, temperature=0, **penalty).tokens != plain.tokens
    assert ask(engine, prompt, temperature=0, penalty_window=0, **penalty).tokens == plain.tokens
    assert ask(engine, prompt, temperature=0, penalty_window=-1, **penalty).tokens != plain.tokens


def test_ignore_eos_goes_past_the_end(engine):
    chat = "<|im_start|>user\nSay hi.<|im_end|>\n<|im_start|>assistant\n"
    ends = ask(engine, chat, temperature=0, max_tokens=60, ignore_eos=False)
    assert ends.end.finish_reason == "stop"
    goes_on = ask(engine, chat, temperature=0, max_tokens=60)
    assert goes_on.end.finish_reason == "length" and len(goes_on.tokens) == 60
    assert ask(engine, chat, temperature=0, max_tokens=60, repeat_penalty=1.01).end.finish_reason == "length"


def test_stop_strings_and_stop_tokens(engine):
    plain = ask(engine, temperature=0)
    word = plain.text.split()[2]
    stopped = ask(engine, temperature=0, stop=("never there", word))
    assert stopped.text == plain.text[: plain.text.index(word)]
    assert stopped.end.finish_reason == "stop"
    by_token = ask(engine, temperature=0, stop_token_ids=(plain.tokens[3],))
    assert by_token.tokens == plain.tokens[: plain.tokens.index(plain.tokens[3]) + 1]


def test_max_tokens_and_the_context_are_the_end(engine):
    assert ask(engine, max_tokens=0).end.usage.completion_tokens == 0
    assert ask(engine, max_tokens=1).tokens.__len__() == 1
    full = ask(engine, "word " * 500, temperature=0, max_tokens=None)
    assert full.end.finish_reason == "length"
    assert full.end.usage.prompt_tokens + full.end.usage.completion_tokens == 512


def test_text_is_valid_at_every_boundary(engine):
    seen = ask(engine, "日本語で書いてください: 😀😀", temperature=1.5, top_k=0, top_p=1.0, min_p=0.0, seed=5, max_tokens=60)
    seen.text.encode()
    assert len(seen.tokens) == 60


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("min_p", 1.1),
        ("typical_p", 0.0),
        ("repeat_penalty", 0.0),
        ("frequency_penalty", 2.1),
        ("presence_penalty", float("inf")),
        ("penalty_window", -2),
        ("max_tokens", -1),
        ("logit_bias", ((99_999_999, 1.0),)),
        ("logit_bias", ((1, float("nan")),)),
        ("stop_token_ids", (-1,)),
    ],
)
def test_a_value_out_of_range_is_named(engine, field, value):
    with pytest.raises(InvalidField, match=field):
        engine.submit([1, 2], SamplingParams(**{field: value}), print)


def test_a_prompt_beyond_the_context_is_refused_with_both_numbers(engine):
    before = engine.stats()
    with pytest.raises(ContextLengthExceeded) as error:
        engine.submit([1] * 600, SamplingParams(), print)
    assert (error.value.n_prompt_tokens, error.value.n_ctx) == (600, 512)
    assert engine.stats().steps == before.steps


@pytest.mark.parametrize("prompt", [[], [-1], [10**6]], ids=str)
def test_a_prompt_that_is_none_is_refused(engine, prompt):
    with pytest.raises(InvalidField, match="prompt"):
        engine.submit(prompt, SamplingParams(), print)


def test_a_full_queue_refuses_and_says_when_to_come_again(model_path):
    with running(model_path, parallel=1, queue=1) as engine:
        held = start(engine, [1, 2, 3], 4, hold=True)
        waiting = start(engine, [1, 2, 3], 4)
        with pytest.raises(Overloaded) as error:
            engine.submit([1, 2, 3], SamplingParams(), print)
        assert error.value.retry_after >= 1
        held.release()
        assert (held.reason, waiting.reason) == ("length", "length")
