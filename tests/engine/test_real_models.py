"""What requests that begin alike share on real models, with a user's settings, and that sharing changes no answer.

All prompts tell some words near their beginning, out of reach of a sliding window at their end, where they ask for them.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from locallab.engine import TextEngine
from locallab.settings import EngineSettings
from tests.support.live_engine import Answer, ask, running, start

WORDS = " winter kite doctor gold river lamp seven horse"
ASKED = "The secret words are:"
PLACES = ("Box", "Shelf", "Drawer", "Basket")
COLOURS = ("red", "green", "blue", "white", "black", "yellow")
THINGS = ("lamp", "bell", "coin", "drum", "fork", "kite", "rope", "vase")

NOISE = {"llama": 0.6, "gemma3": 1.1}
"""Difference of a logit, by architecture, for which another order of the same sums is enough (measured)."""

DEFAULT = EngineSettings()
CACHED = {"cache_tokens": DEFAULT.cache_tokens, "cache_ram_mib": DEFAULT.cache_ram_mib}

SYSTEM, CONVERSATION = 926, 943
"""Tokens of a system prompt, and with the question behind it."""
TURN, COMMON, NEXT_TURN = 1017, 1020, 1113
"""Tokens of a turn, of what the next turn shares with it and its answer, and of the next turn."""
SHORT = 600


@dataclasses.dataclass(frozen=True)
class Asked:
    prompt: list[int]
    answer: Answer


@pytest.fixture(scope="module", params=["model_path", "gemma"])
def path(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def plain(path: Path) -> Iterator[TextEngine]:
    """An engine without caches."""
    with running(path, context=2048, threads=None) as engine:
        yield engine


@pytest.fixture(scope="module")
def edited(path: Path) -> Asked:
    """The second turn of a conversation, whose first answer comes back with other words in it."""
    with running(path, context=2048, threads=None, **CACHED) as engine:
        first = begin(engine, TURN)
        answer = ask(engine, first, 8).tokens
        second = first + answer[: COMMON - TURN] + question(engine, 1, NEXT_TURN - COMMON)
        assert second[COMMON] != answer[COMMON - TURN]
        return respond(engine, second)


@pytest.fixture(scope="module")
def conversations(path: Path) -> list[Asked]:
    return converse(path, 3)


@pytest.fixture(scope="module")
def told(path: Path) -> list[Asked]:
    """The same when each request tells where its system prompt ends."""
    return converse(path, 2, boundaries=(SYSTEM,))


@pytest.fixture(scope="module")
def four(path: Path) -> list[Asked]:
    """Four answers to one prompt, asked for at once."""
    with running(path, context=2048, threads=None, **CACHED) as engine:
        prompt = begin(engine, SHORT - 50) + question(engine, 1, 50)
        answers = [start(engine, prompt, 8, logprobs=20) for _ in range(4)]
        return [Asked(prompt, answer.ended()) for answer in answers]


def begin(engine: TextEngine, n: int, words: str = WORDS) -> list[int]:
    """The beginning of a prompt, `n` tokens, with the words."""
    return [*engine.tokenize(f"{ASKED}{words}.", add_special=True, parse_special=False), *facts(engine, 0)][:n]


def question(engine: TextEngine, seed: int, n: int) -> list[int]:
    """The end of a prompt, `n` tokens of which the first depends on the seed."""
    end = engine.tokenize(f"\n{ASKED}", add_special=False, parse_special=False)
    return facts(engine, seed)[: n - len(end)] + end


def facts(engine: TextEngine, seed: int) -> list[int]:
    chosen = random.Random(seed)
    lines = [f" {PLACES[seed]} {i} holds the {chosen.choice(COLOURS)} {chosen.choice(THINGS)}." for i in range(200)]
    return engine.tokenize("".join(lines), add_special=False, parse_special=False)


def respond(engine: TextEngine, prompt: list[int], **params: object) -> Asked:
    return Asked(prompt, ask(engine, prompt, 8, logprobs=20, **params))


def converse(path: Path, n: int, **params: object) -> list[Asked]:
    """New conversations on one system prompt, one after the other."""
    with running(path, context=2048, threads=None, **CACHED) as engine:
        system = begin(engine, SYSTEM)
        prompts = [system + question(engine, seed, CONVERSATION - SYSTEM) for seed in range(1, n + 1)]
        return [respond(engine, prompt, **params) for prompt in prompts]


def apart(one: Answer, other: Answer) -> float:
    """The largest difference of the logprob of a token that both answers find likely in a place."""
    places = zip(one.logprobs, other.logprobs, strict=True)
    pairs = [({token: logprob for token, _, logprob in each.top} for each in both) for both in places]
    return max(abs(mine[token] - its[token]) for mine, its in pairs for token in mine.keys() & its.keys())


def check(plain: TextEngine, *asked: Asked) -> None:
    """Assert that answers to one prompt are right."""
    expected = respond(plain, asked[0].prompt).answer
    for each in asked:
        assert (expected.cached, expected.text, each.answer.text) == (0, WORDS, WORDS)
        assert apart(each.answer, expected) < NOISE[plain.info.architecture]


def test_other_words_are_noticed(plain: TextEngine, four: list[Asked]) -> None:
    words = WORDS.replace("kite", "stone")
    other = respond(plain, begin(plain, SHORT - 50, words) + question(plain, 1, 50)).answer
    assert other.text == words
    assert apart(other, four[0].answer) > NOISE[plain.info.architecture]


def test_the_answer_to_an_edited_conversation_is_right(plain: TextEngine, edited: Asked) -> None:
    assert len(edited.prompt) == NEXT_TURN
    check(plain, edited)


def test_an_edited_conversation_is_computed_from_the_edit_on(edited: Asked) -> None:
    assert 1000 <= edited.answer.cached <= COMMON


def test_the_answers_of_new_conversations_are_right(plain: TextEngine, conversations: list[Asked], told: list[Asked]) -> None:
    assert {len(asked.prompt) for asked in conversations} == {CONVERSATION}
    for asked in (*conversations[1:], told[1]):
        check(plain, asked)


def test_a_new_conversation_shares_its_system_prompt_where_its_end_is_known(told: list[Asked]) -> None:
    assert 920 <= told[1].answer.cached <= SYSTEM + 1


def test_a_third_conversation_shares_the_system_prompt_of_two_others(conversations: list[Asked]) -> None:
    assert 920 <= conversations[2].answer.cached <= SYSTEM + 1


def test_four_answers_to_one_prompt_are_right(plain: TextEngine, four: list[Asked]) -> None:
    check(plain, *four)


def test_four_answers_need_one_prompt(four: list[Asked]) -> None:
    assert sum(SHORT - asked.answer.cached for asked in four) <= SHORT + 3
