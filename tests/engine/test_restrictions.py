"""What an answer may have and where it ends, in a running engine: alone, in a batch, under grammars, behind cached prompts."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path

import gguf
import pytest

from locallab.engine import SamplingParams, TextEngine
from locallab.engine.request import Constraint
from locallab.engine.sampling_check import RANGES
from locallab.engine.sampling_defaults import sampling_of
from locallab.engine.token_rules import RuleBook
from locallab.errors import InvalidField
from locallab.settings import EngineSettings
from tests.support import tiny_gguf
from tests.support.live_engine import Answer, ask, check, running, start

PROMPT = [10, 20, 30, 40]
HUGE = 2**31 - 1
MORE = [("▁", gguf.TokenType.NORMAL), ("<|turn|>", gguf.TokenType.CONTROL), ("<|tool|>", gguf.TokenType.CONTROL)]
MORE += [("abc", gguf.TokenType.NORMAL), ("bcab", gguf.TokenType.NORMAL), ("caab", gguf.TokenType.NORMAL)]
TURN = tiny_gguf.N_VOCAB + 1
WORDS = (*range(tiny_gguf.N_VOCAB - 26, tiny_gguf.N_VOCAB - 23), *range(TURN + 2, TURN + 5))
"""The letters a, b and c, and words of them."""


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TextEngine]:
    """Keeps nothing in its cache, so that an answer is computed in the same way each time."""
    with running(tiny_gguf.write(tmp_path_factory.mktemp("tiny") / "tiny.gguf", "llama", more=MORE)) as engine:
        yield engine


def answer(engine: TextEngine, prompt: list[int] = PROMPT, **params: object) -> Answer:
    listener = Answer()
    engine.submit(prompt, SamplingParams(**{"temperature": 0.0, "max_tokens": 12} | params), listener)  # type: ignore[arg-type]
    return listener.ended()


def test_an_answer_has_only_what_is_allowed(engine):
    allowed = (60, 61, 62)
    for more in ({}, {"temperature": 1.0, "seed": 1}, {"temperature": 1.0, "mirostat": 1}, {"xtc_probability": 1.0}):
        found = answer(engine, allowed_token_ids=allowed, **more)
        assert set(found.tokens) <= set(allowed) and found.reason == "length"


def test_where_nothing_is_left_the_answer_ends(engine):
    found = answer(engine, allowed_token_ids=(60,), logit_bias=((60, float("-inf")),))
    assert (found.tokens, found.reason) == ([], "stop")


def test_a_forbidden_token_never_comes(engine):
    plain = answer(engine)
    assert plain.tokens[0] not in answer(engine, logit_bias=((plain.tokens[0], float("-inf")),)).tokens


def test_bad_words_are_not_completed(engine):
    params = SamplingParams(bad_words=("ab",))
    word = list(RuleBook(engine._model, 256).rules(params).bad_words[0])
    assert len(word) > 1
    free = {"allowed_token_ids": tuple(word), "temperature": 99.0, "samplers": ("temperature",), "seed": 1, "max_tokens": 200}
    for bad_words, expected in (((), True), (("ab",), False)):
        tokens = answer(engine, bad_words=bad_words, **free).tokens
        assert any(tokens[at : at + len(word)] == word for at in range(200)) == expected and set(tokens) == set(word)


def test_nothing_but_a_limit_ends_an_answer_early(engine):
    plain = ask(engine, PROMPT, 12)
    third = plain.tokens[2]
    found = answer(engine, stop_token_ids=(third,), min_tokens=5)
    assert third not in found.tokens[:5] and len(found.tokens) > 5
    text = plain.text[:4]
    assert answer(engine, stop=(text,)).text == ""
    late = answer(engine, stop=(text,), min_tokens=12, ignore_eos=True)
    assert late.text == plain.text and late.reason == "length"
    ends = ((tiny_gguf.EOS, 100.0),)
    assert answer(engine, logit_bias=ends).tokens == [tiny_gguf.EOS]
    found = answer(engine, logit_bias=ends, min_tokens=4)
    assert len(found.tokens) == 5 and found.tokens.index(tiny_gguf.EOS) == 4 and found.reason == "stop"
    assert len(answer(engine, logit_bias=ends, min_tokens=99).tokens) == 12


def test_a_control_token_stops_by_its_name(engine):
    always = {"logit_bias": ((TURN, 100.0),)}
    found = answer(engine, stop=("<|turn|>",), **always)
    assert (found.text, found.reason, len(found.tokens)) == ("", "stop", 1) and found.last.stop == "<|turn|>"
    assert len(answer(engine, stop=("<|tool|>",), **always).tokens) == 12
    assert len(answer(engine, stop=("|",), **always).tokens) == 12
    assert answer(engine, stop=("<|turn|>",), min_tokens=3, **always).tokens == [TURN] * 4


def test_a_stop_string_is_included_on_request(engine):
    plain = ask(engine, PROMPT, 12)
    stop = plain.text[5:8]
    end = plain.text.index(stop)
    assert answer(engine, stop=(stop,)).text == plain.text[:end]
    assert answer(engine, stop=(stop,), include_stop=True).text == plain.text[: end + len(stop)]
    token = plain.tokens[4]
    included = answer(engine, stop_token_ids=(token,), include_stop=True)
    assert included.text == engine.detokenize(included.tokens)


def test_the_last_line_ends_an_answer_that_is_late(engine):
    [newline] = engine.tokenize("\n", add_special=False, parse_special=False)[-1:]
    lines = {"logit_bias": ((newline, 100.0),), "max_tokens": 240}
    found = answer(engine, line_after_ms=1, **lines)
    assert found.reason == "length" and 1 < len(found.tokens) < 240
    assert len(answer(engine, line_after_ms=600_000, **lines).tokens) == 240
    assert len(answer(engine, line_after_ms=1, max_tokens=40, logit_bias=((newline, -100.0),), ignore_eos=True).tokens) == 40


@pytest.mark.parametrize(
    "params",
    [
        {"penalty_window": HUGE, "repeat_penalty": 1.5},
        {"penalty_window": 2**40, "repeat_penalty": 1.5},
        {"dry_multiplier": 1.0, "dry_penalty_last_n": HUGE},
        {"dry_multiplier": 1.0, "dry_allowed_length": 2**40},
        {"temperature": 1.0, "top_k": 2**40},
        {"temperature": 1.0, "min_keep": 2**70},
        {"min_tokens": 2**70},
    ],
    ids=str,
)
def test_no_number_allocates_more_than_the_context(engine, params):
    assert answer(engine, ignore_eos=True, **params).reason == "length"


EDGES = [(field, edge) for field, low, high, _ in RANGES for edge in (low, high) if math.isfinite(edge)]


@pytest.mark.parametrize(("field", "edge"), EDGES)
def test_the_edges_of_ranges_are_inside(engine, field, edge):
    others = {"temperature": 1.0, "mirostat": 2} if field.startswith("mirostat_") else {"temperature": 1.0}
    if field.startswith(("dry_", "xtc_", "adaptive_", "dynatemp_")):
        others |= {"dry_multiplier": 1.0, "xtc_probability": 0.5, "adaptive_target": 0.5, "dynatemp_range": 0.5}
    whole = isinstance(getattr(SamplingParams(), field), int)
    found = answer(engine, ignore_eos=True, **others | {field: int(edge) if whole else float(edge)})
    assert found.reason == "length" and len(found.tokens) == 12


DRAWS = {
    "dry": {"temperature": 0.0, "dry_multiplier": 2.0, "dry_penalty_last_n": -1},
    "xtc": {"temperature": 1.0, "seed": 3, "xtc_probability": 0.5},
    "sigma": {"temperature": 1.0, "seed": 3, "top_n_sigma": 0.1},
    "mirostat": {"temperature": 1.0, "seed": 3, "mirostat": 2},
    "adaptive": {"temperature": 1.0, "seed": 3, "adaptive_target": 0.2},
    "heat": {"temperature": 1.0, "seed": 3, "dynatemp_range": 0.5},
    "order": {"temperature": 1.5, "seed": 3, "samplers": ("temperature", "min_p")},
}


@pytest.mark.parametrize("params", DRAWS.values(), ids=DRAWS)
def test_a_request_has_the_same_tokens_alone_and_in_a_batch(tmp_path, params):
    path = tiny_gguf.write(tmp_path / "tiny.gguf", "llama")
    with running(path, kv_layout="streams") as engine:
        alone = answer(engine, ignore_eos=True, **params).tokens
        held = start(engine, [5, 6, 7], 30, hold=True).begun()
        listeners = [Answer() for _ in range(2)]
        for listener in listeners:
            engine.submit(PROMPT, SamplingParams(**{"max_tokens": 12, "ignore_eos": True} | params), listener)  # type: ignore[arg-type]
        held.release()
        together = [listener.ended().tokens for listener in listeners]
        held.ended()
    assert together == [alone, alone]
    with running(path) as engine:
        plain = answer(
            engine, ignore_eos=True, **{name: params[name] for name in ("temperature", "seed") if name in params}
        ).tokens
    assert params["temperature"] == 0 or plain != alone


def test_dry_counts_the_prompt_also_where_it_is_cached(tmp_path):
    path = tiny_gguf.write(tmp_path / "tiny.gguf", "llama")
    plain: list[int] = []
    with running(path, cache_tokens=256) as engine:
        plain = ask(engine, PROMPT, 3).tokens
        prompt = [*PROMPT, *plain, *PROMPT] * 4
        dry = {"dry_multiplier": 50.0, "dry_base": 2.0, "dry_penalty_last_n": -1, "dry_sequence_breakers": ()}
        first = ask(engine, prompt, 4, **dry)
        again = ask(engine, prompt, 4, **dry)
        without = ask(engine, prompt, 4, **dry | {"dry_penalty_last_n": 3})
    assert first.cached < again.cached and again.tokens == first.tokens
    assert PROMPT[0] not in first.tokens[:1] and len(without.tokens) == 4


@pytest.mark.parametrize("params", DRAWS.values(), ids=DRAWS)
def test_a_grammar_holds_whatever_the_samplers(engine, params):
    choice = Constraint("choice", json.dumps(["aaaaaaaa", "bbbbbbbb", "abababab"]), "choice")
    for seed in range(4):
        found = answer(engine, constraint=choice, **params | {"seed": seed, "dry_multiplier": 100.0, "dry_base": 100.0})
        assert found.text in ("aaaaaaaa", "bbbbbbbb", "abababab")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("top_n_sigma", float("nan")),
        ("xtc_probability", 1.1),
        ("xtc_threshold", -0.1),
        ("dry_multiplier", -1.0),
        ("dry_base", 0.5),
        ("dry_allowed_length", -1),
        ("dry_penalty_last_n", -2),
        ("dry_sequence_breakers", ("x",) * 65),
        ("dynatemp_range", -0.1),
        ("dynatemp_exponent", 11.0),
        ("mirostat", 3),
        ("mirostat_tau", float("inf")),
        ("mirostat_eta", 2.0),
        ("adaptive_target", 1.5),
        ("adaptive_decay", 1.0),
        ("min_keep", -1),
        ("min_tokens", -1),
        ("top_k", 1.5),
        ("samplers", ("top_k", "infill")),
        ("samplers", ("top_k",) * 33),
        ("allowed_token_ids", (10**6,)),
        ("bad_words", ("",)),
        ("bad_words", ("x" * 16_385,)),
        ("logit_bias", (("", 1.0),)),
        ("logit_bias", ((1, float("inf")),)),
        ("stop", ("x",) * 1025),
        ("line_after_ms", -1),
    ],
)
def test_a_value_out_of_range_is_named(engine, field, value):
    with pytest.raises(InvalidField, match=field):
        engine.submit(PROMPT, SamplingParams(**{field: value}), print)


def test_texts_can_be_looked_up_beforehand(engine):
    params = SamplingParams(dry_multiplier=0.5, dry_sequence_breakers=("a", "b"), bad_words=("x",))
    engine.prepare_texts(params)
    assert engine._rules.rules(params).dry is engine._rules.rules(params).dry
    with pytest.raises(InvalidField, match="bad_words"):
        engine.prepare_texts(SamplingParams(bad_words=("",)))


GGUF = {
    "temp": "0.3",
    "top_k": "7",
    "penalty_last_n": "12",
    "sequence": "top_k;temperature;unknown",
    "top_p": "7",
    "mirostat": "x",
}


def test_a_model_s_file_has_defaults_and_settings_go_before_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class File:
        def meta(self, key: str) -> str | None:
            return GGUF.get(key.removeprefix("general.sampling."))

    assert sampling_of(File(), EngineSettings(top_k=9, min_p=0.2, context=5)) == {
        "temperature": 0.3,
        "top_k": 9,
        "min_p": 0.2,
        "penalty_window": 12,
        "samplers": ("top_k", "temperature"),
    }
    assert "top_p" in caplog.text and "mirostat" in caplog.text


@pytest.mark.parametrize("ram", [0, 64])
def test_penalties_look_at_the_same_tokens_after_a_preemption(tmp_path: Path, ram: int) -> None:
    """Four requests of 240 tokens in a pool of 512: some are put back and computed again, and their samplers go on."""
    path, prompts = tiny_gguf.write(tmp_path / "tiny.gguf", "llama"), [[*range(10 + i, 50 + i)] for i in range(4)]
    strong = {"dry_multiplier": 4.0, "dry_base": 2.0, "dry_allowed_length": 1, "dry_penalty_last_n": -1}
    strong |= {"dry_sequence_breakers": (), "frequency_penalty": 0.3, "penalty_window": -1}
    with running(path, context=512, kv_tokens=512, cache_tokens=64, cache_ram_mib=ram) as engine:
        answers = [start(engine, prompt, 200, hold=i == 0, **strong) for i, prompt in enumerate(prompts)]
        answers[0].release()
        assert all(len(each.ended().tokens) == 200 for each in answers)
        assert engine.stats().preemptions > 0
    for prompt, each in zip(prompts, answers, strict=True):
        check(path, prompt, each.tokens, **strong)


@pytest.mark.parametrize("include", [False, True])
@pytest.mark.parametrize("logprobs", [None, 1])
def test_wherever_a_stop_string_begins_and_ends_nothing_is_lost_or_told_twice(engine, include, logprobs):
    """Text, tokens, log probabilities and usage agree, for stop strings cut in every way by tokens."""
    words = {"allowed_token_ids": WORDS, "logprobs": logprobs, "temperature": 1.0, "seed": 1}
    plain = answer(engine, max_tokens=16, **words)
    ends = [len(engine.detokenize(plain.tokens[:count])) for count in range(17)]
    assert ends[-1] == len(plain.text) > 16, "some tokens are more than one character"
    for begin, size in itertools.product(range(len(plain.text)), (1, 2, 3, 5)):
        stop = plain.text[begin : begin + size]
        at = plain.text.index(stop)
        found = answer(engine, stop=(stop, "never"), include_stop=include, max_tokens=16, **words)
        count = next(count for count, end in enumerate(ends) if end >= at + len(stop))
        assert found.text == plain.text[: at + len(stop) * include], stop
        assert (found.tokens, found.reason, found.last.stop) == (plain.tokens[:count], "stop", stop)
        assert found.last.usage.completion_tokens == count
        told = [each.token for each in found.logprobs]
        assert told == (plain.tokens[: len(told)] if logprobs else []) and len(told) in (0, count - 1, count)
        assert not logprobs or b"".join(each.piece for each in found.logprobs).decode().startswith(found.text)
