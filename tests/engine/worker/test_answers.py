"""What an answer shows and tells: control tokens that are asked for, the stop string that ended it, a budget of reasoning."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from locallab.engine import Constraint, SamplingParams, TextEngine
from locallab.engine.request import ReasoningBudget
from tests.support import tiny_gguf
from tests.support.live_engine import Answer, running
from tests.support.tiny_grammar import MARK, MORE, PROMPT

MORE_TAG = MARK + 1


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TextEngine]:
    path = tiny_gguf.write(tmp_path_factory.mktemp("models") / "tiny.gguf", "llama", more=MORE)
    with running(path, context=512, parallel=4, kv_tokens=2048) as engine:
        yield engine


def ask(engine: TextEngine, **params: object) -> Answer:
    answer = Answer()
    engine.submit(PROMPT, SamplingParams(**{"max_tokens": 60, "ignore_eos": True, **params}), answer)  # type: ignore[arg-type]
    answer.ended()
    return answer


def test_control_tokens_are_known_by_their_texts(engine: TextEngine) -> None:
    assert engine.info.control_tokens["<|mark|>"] == MARK
    assert "<tag>" not in engine.info.control_tokens


@pytest.mark.parametrize(("visible", "text"), [((), "abab"), ((MARK,), "ab<|mark|>ab")])
def test_a_control_token_shows_only_if_it_is_asked_for(engine: TextEngine, visible: tuple[int, ...], text: str) -> None:
    constraint = Constraint("lark", f'start: "ab" <[{MARK}]> "ab"')
    assert ask(engine, constraint=constraint, visible=visible).text == text


def test_the_stop_string_that_ended_the_answer_is_told(engine: TextEngine) -> None:
    constraint = Constraint("lark", 'start: "ab" "name" "true"')
    answer = ask(engine, constraint=constraint, stop=("zz", "name"))
    assert answer.last is not None and (answer.text, answer.last.stop) == ("ab", "name")
    answer = ask(engine, constraint=constraint)
    assert answer.last is not None and answer.last.stop is None


THOUGHT = 'TEXT: /(?s:.*)/\nthought[lazy]: TEXT "<tag>"\nstart: thought /\\s*/ "name"'


@pytest.mark.parametrize("constraint", [None, Constraint("lark", THOUGHT)])
def test_reasoning_ends_when_its_budget_is_used_up(engine: TextEngine, constraint: Constraint | None) -> None:
    budget = ReasoningBudget(5, "<none>", "<tag>", True)
    answer = ask(engine, reasoning=budget, constraint=constraint, temperature=2.0, seed=3)
    rest = answer.text.partition("<tag>")[2]
    assert "<tag>" in answer.text and MORE_TAG in answer.tokens[:12]
    assert constraint is None or rest.strip() == "name"
    assert answer.last is not None and answer.last.usage is not None
    assert answer.last.usage.completion_tokens == len(answer.tokens)
