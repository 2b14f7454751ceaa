"""How likely tokens were: the arithmetic, and what real engines tell of answers and prompts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from locallab.engine import Constraint, SamplingParams, TextEngine, TokenEvent
from locallab.engine.logprobs import Logprobs, top
from locallab.engine.request import ReasoningBudget, TokenLogprob
from locallab.errors import InvalidField
from tests.support import tiny_gguf
from tests.support.fake_llama import FakeModel
from tests.support.live_engine import TIE, Answer, check, running
from tests.support.tiny_gguf import ARCHITECTURES
from tests.support.tiny_grammar import MARK, MORE, PROMPT

NEAR = 1e-2
"""Rounding depends on how many tokens are computed at once: by less than this below a tile (64 tokens), by TIE above."""

floats = st.floats(-50, 50, width=32) | st.sampled_from([0.0, 1.0])
rows = arrays.arrays(np.float32, st.integers(1, 40), elements=floats)


@given(rows, st.integers(0, 50), st.data())
def test_logprobs_are_those_of_a_distribution(row: np.ndarray, count: int, data: st.DataObject) -> None:
    token = data.draw(st.integers(0, len(row) - 1))
    logprobs = Logprobs(SamplingParams(logprobs=count), FakeModel())
    logprobs.see(row)
    told = logprobs.describe(row, token)
    exact = row.astype(np.float64) - np.log(np.exp(row.astype(np.float64) - row.max()).sum()) - row.max()
    assert told.logprob == pytest.approx(exact[token], abs=1e-4) and told.logprob <= 0
    assert [each for each, _, _ in told.top] == sorted(range(len(row)), key=lambda i: (-row[i], i))[:count]
    assert not count or told.top[0][0] == int(row.argmax())
    every = [logprobs.describe(row, each).logprob for each in range(len(row))]
    assert sum(map(math.exp, every)) == pytest.approx(1, abs=1e-4)


def test_a_token_of_the_prompt_has_its_rank_among_all() -> None:
    logprobs = Logprobs(SamplingParams(logprobs=1, prompt_logprobs=True), FakeModel())
    for token in (2, 0, 1):
        logprobs.score(np.array([1.0, 3.0, 2.0], np.float32), token)
    assert [each.rank for each in logprobs.take_scored()] == [2, 3, 1]


def test_what_is_impossible_stays_so() -> None:
    row = np.array([0, -np.inf, 1], np.float32)
    logprobs = Logprobs(SamplingParams(logprobs=2), FakeModel())
    logprobs.see(row)
    assert logprobs.describe(row, 1).logprob == -math.inf and top(row, 3) == [2, 0, 1]


class Told(Answer):
    """Keeps every event's logprobs."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[TokenEvent] = []

    def __call__(self, event: TokenEvent) -> None:
        self.events.append(event)
        super().__call__(event)

    @property
    def prompt_logprobs(self) -> list[TokenLogprob]:
        return [each for event in self.events for each in event.prompt_logprobs]


def begin(engine: TextEngine, prompt: list[int] = PROMPT, **params: object) -> Told:
    answer = Told()
    defaults = {"max_tokens": 20, "temperature": 0, "ignore_eos": True, "logprobs": 3}
    engine.submit(prompt, SamplingParams(**{**defaults, **params}), answer)  # type: ignore[arg-type]
    return answer


def ask(engine: TextEngine, prompt: list[int] = PROMPT, **params: object) -> Told:
    answer = begin(engine, prompt, **params)
    answer.ended()
    assert answer.last is not None and answer.last.error is None, answer.last
    return answer


@pytest.fixture(scope="module", params=ARCHITECTURES)
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TextEngine]:
    path = tiny_gguf.write(tmp_path_factory.mktemp("models") / "tiny.gguf", request.param, more=MORE)
    with running(path, context=512, parallel=4, kv_tokens=2048, cache_tokens=256) as engine:
        yield engine


def values(told: list[TokenLogprob]) -> list[float]:
    return [each.logprob for each in told]


def test_a_greedy_answers_tokens_are_the_likeliest(engine: TextEngine) -> None:
    answer = ask(engine)
    assert [each.token for each in answer.logprobs] == answer.tokens
    for each in answer.logprobs:
        likeliest = next(top for top in each.top if top[0] != tiny_gguf.EOS)  # which is ignored here
        assert likeliest[0] == each.token and likeliest[2] == each.logprob
        assert 0 < math.exp(each.logprob) <= 1 and len(each.top) == 3
        assert [logprob for _, _, logprob in each.top] == sorted((x for _, _, x in each.top), reverse=True)
        assert each.hidden == (not each.piece or each.token in (0, 1, 2, MARK)) and each.piece == engine.pieces([each.token])[0]


def test_who_does_not_ask_is_told_nothing(engine: TextEngine) -> None:
    answer = ask(engine, logprobs=None)
    assert answer.logprobs == answer.prompt_logprobs == []
    for tokens in (answer.tokens, ask(engine).tokens):
        check(engine.info.path, PROMPT, tokens)


def test_the_prompt_is_scored_as_if_it_had_been_said(engine: TextEngine) -> None:
    answer = ask(engine, max_tokens=10)
    whole = [*PROMPT, *answer.tokens]
    scored = ask(engine, whole, prompt_logprobs=True, max_tokens=0)
    assert [each.token for each in scored.prompt_logprobs] == whole[1:] and scored.tokens == []
    assert (scored.reason, scored.cached) == ("length", 0)
    assert values(scored.prompt_logprobs)[len(PROMPT) - 1 :] == pytest.approx(values(answer.logprobs), abs=NEAR)
    again = ask(engine, whole, prompt_logprobs=True, max_tokens=4)
    assert values(again.prompt_logprobs) == pytest.approx(values(scored.prompt_logprobs), abs=NEAR)
    assert again.events[0].prompt_logprobs and not any(event.prompt_logprobs for event in again.events[1:])
    assert len(again.logprobs) == len(again.tokens) == 4


def test_alone_and_in_company_it_is_the_same(engine: TextEngine) -> None:
    prompts = [[*PROMPT, 50 + i] for i in range(6)]
    alone = [ask(engine, prompt, prompt_logprobs=i % 2 == 0) for i, prompt in enumerate(prompts)]
    company = [begin(engine, prompt, prompt_logprobs=i % 2 == 0) for i, prompt in enumerate(prompts)]
    for one, other in zip(alone, company, strict=True):
        other.ended()
        same = next((i for i, (a, b) in enumerate(zip(one.tokens, other.tokens, strict=True)) if a != b), len(one.tokens))
        assert values(one.logprobs)[:same] == pytest.approx(values(other.logprobs)[:same], abs=TIE)
        assert values(one.prompt_logprobs) == pytest.approx(values(other.prompt_logprobs), abs=TIE)


def test_a_long_prompt_is_scored_in_chunks(engine: TextEngine) -> None:
    prompt = [tiny_gguf.BOS, *(3 + (i * 37) % 250 for i in range(400))]
    scored = ask(engine, prompt, prompt_logprobs=True, max_tokens=1, logprobs=0)
    assert [each.token for each in scored.prompt_logprobs] == prompt[1:]
    assert all(each.logprob <= 0 for each in scored.prompt_logprobs)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TextEngine]:
    path = tiny_gguf.write(tmp_path_factory.mktemp("models") / "tiny.gguf", "llama", more=MORE)
    with running(path, context=512, parallel=4, kv_layout="unified", kv_tokens=2048, cache_tokens=512) as engine:
        yield engine


NAME = '"properties": {"name": {"enum": ["abab", "zz"]}}, "required": ["name"]'
SCHEMA = f'{{"type": "object", {NAME}, "additionalProperties": false}}'


@pytest.mark.parametrize("wild", [False, True])
def test_what_a_grammar_forces_has_logprobs_too(llama: TextEngine, wild: bool) -> None:
    drawing = {"temperature": 2.0, "seed": 5} if wild else {}
    constraint = Constraint("json_schema", SCHEMA, "x")
    answer = ask(llama, constraint=constraint, max_tokens=60, **drawing)
    assert answer.text in ('{"name": "abab"}', '{"name": "zz"}') and answer.reason == "stop"
    assert [each.token for each in answer.logprobs] == answer.tokens
    assert answer.text == ask(llama, constraint=constraint, max_tokens=60, logprobs=None, **drawing).text
    free = ask(llama, [*PROMPT, *answer.tokens], prompt_logprobs=True, max_tokens=0)
    assert values(free.prompt_logprobs)[len(PROMPT) - 1 :] == pytest.approx(values(answer.logprobs), abs=NEAR)
    assert len({each.token for each in answer.logprobs} - {each.top[0][0] for each in answer.logprobs}) > 0


def test_biases_do_not_show(llama: TextEngine) -> None:
    plain = ask(llama, max_tokens=1)
    [first] = plain.logprobs
    biased = ask(llama, max_tokens=1, logit_bias=((100, 100.0),), constraint=None)
    assert biased.tokens == [100] and biased.logprobs[0].top == first.top and biased.logprobs[0].logprob < first.logprob


def test_a_bias_chooses_among_what_a_grammar_allows(llama: TextEngine) -> None:
    constraint = Constraint("choice", '["a", "b", "c"]', "choice")
    for letter in "abc":
        [token] = [t for t in range(tiny_gguf.FIRST_PLAIN, tiny_gguf.N_VOCAB) if llama.pieces([t]) == [letter.encode()]][-1:]
        answer = ask(llama, constraint=constraint, logit_bias=((token, 90.0), (200, 100.0)))
        assert answer.text == letter


def test_what_ends_reasoning_has_logprobs_too(llama: TextEngine) -> None:
    answer = ask(llama, reasoning=ReasoningBudget(5, "<none>", "<tag>", True), max_tokens=20)
    assert "<tag>" in answer.text and [each.token for each in answer.logprobs] == answer.tokens


@pytest.mark.parametrize("ended", [{"stop_token_ids": (100,)}, {"ignore_eos": False}, {"stop": ("x",)}], ids=str)
def test_what_ends_an_answer_has_logprobs_if_asked_for(llama: TextEngine, ended: dict[str, Any]) -> None:
    """As many as tokens are counted, whatever ended it."""
    [x] = [t for t in range(tiny_gguf.FIRST_PLAIN, tiny_gguf.N_VOCAB) if llama.pieces([t]) == [b"x"]][-1:]
    token = {"stop": x, "stop_token_ids": 100, "ignore_eos": tiny_gguf.EOS}[next(iter(ended))]
    for end_logprobs in (False, True):
        answer = ask(llama, logit_bias=((token, 100.0),), end_logprobs=end_logprobs, **ended)
        assert (answer.text, answer.reason, answer.tokens) == ("", "stop", [token])
        assert [each.token for each in answer.logprobs] == [token] * end_logprobs
    assert answer.logprobs[0].logprob < -1 and answer.logprobs[0].hidden == (token == tiny_gguf.EOS)


def test_what_ends_an_answer_is_no_part_of_it(llama: TextEngine) -> None:
    free = ask(llama, max_tokens=12)
    third = free.tokens[2]
    ended = ask(llama, stop_token_ids=(third,))
    at = free.tokens.index(third)
    assert ended.reason == "stop" and [each.token for each in ended.logprobs] == free.tokens[:at]
    constraint = Constraint("lark", 'start: "ab" "name" "true"')
    stopped = ask(llama, constraint=constraint, stop=("name",))
    assert stopped.text == "ab" and b"".join(each.piece for each in stopped.logprobs) in (b"ab", b"abnam", b"abna", b"abn")


def test_control_tokens_are_called_by_their_names(llama: TextEngine) -> None:
    constraint = Constraint("lark", f'start: "ab" <[{MARK}]> "ab"')
    hidden, shown = [ask(llama, constraint=constraint, visible=visible) for visible in ((), (MARK,))]
    for answer, is_hidden in ((hidden, True), (shown, False)):
        [mark] = [each for each in answer.logprobs if each.token == MARK]
        assert (mark.piece, mark.hidden) == (b"<|mark|>", is_hidden)


@pytest.mark.parametrize("params", [{"logprobs": -1}, {"logprobs": 21}, {"prompt_logprobs": True}])
def test_what_is_out_of_range_is_refused(llama: TextEngine, params: dict[str, int]) -> None:
    with pytest.raises(InvalidField, match=next(iter(params))):
        llama.submit(PROMPT, SamplingParams(**params), Answer())


def test_answers_to_one_prompt_compute_it_once(llama: TextEngine) -> None:
    prompt = [3 + (i * 41) % 250 for i in range(40)]  # one chunk, also where the machine is busy
    before = llama.stats()
    answers = [begin(llama, prompt, temperature=1.0, seed=i, max_tokens=4, logprobs=None) for i in range(4)]
    cached = sorted(answer.ended().cached for answer in answers)
    assert cached == [0, len(prompt) - 1, len(prompt) - 1, len(prompt) - 1]
    after = llama.stats()
    computed = after.prompt_tokens - before.prompt_tokens - (after.cached_tokens - before.cached_tokens)
    assert computed == len(prompt) + 3


@pytest.mark.parametrize("length", [1, 2, 3])
def test_the_shortest_prompts(llama: TextEngine, length: int) -> None:
    prompt = [tiny_gguf.BOS, 100, 101][:length]
    for max_tokens in (0, 2):
        answer = ask(llama, prompt, prompt_logprobs=True, max_tokens=max_tokens)
        assert [each.token for each in answer.prompt_logprobs] == prompt[1:] and len(answer.tokens) == max_tokens


def test_how_the_real_model_finds_a_plain_sentence(model_path: Path) -> None:
    with running(model_path, context=512, threads=2) as engine:
        tokens = engine.tokenize("The capital of France is Paris.", add_special=True, parse_special=False)
        scored = ask(engine, tokens, prompt_logprobs=True, max_tokens=1)
        by_piece = {each.piece: each.logprob for each in scored.prompt_logprobs}
        assert by_piece[b" France"] > -8 and by_piece[b" Paris"] > -2 and by_piece[b" of"] > -1
        assert scored.logprobs[0].top[0][0] == scored.tokens[0]
        greedy = ask(engine, tokens[:-2], max_tokens=2)
        assert greedy.logprobs[0].piece == b" Paris"
        assert greedy.logprobs[0].logprob == pytest.approx(by_piece[b" Paris"], abs=TIE)
