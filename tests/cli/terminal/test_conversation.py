from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from locallab.cli.api_client import ApiClient
from locallab.cli.terminal.conversation import Message, Pieces, Talk, described
from locallab.errors import ConfigError, ServerError
from tests.support.dialect_requests import ARGUMENTS, PARAMETERS, RAW, SAID, THOUGHT
from tests.support.fake_engine import say
from tests.support.http_server import Served

TOOL = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}


def talking(served: Served) -> Iterator[Talk]:
    with ApiClient(served.url) as server:
        yield Talk(server, "tiny:1b")


@pytest.fixture
def talk(served: Served) -> Iterator[Talk]:
    yield from talking(served)


@pytest.fixture
def thinker(thinking: Served) -> Iterator[Talk]:
    yield from talking(thinking)


def answers(served: Served, *texts: str) -> None:
    """Let the engine give these answers, one after the other."""
    left = iter(texts)
    served.engine.script = lambda prompt, params: say(next(left))


def text(answer: Pieces) -> str:
    return "".join(piece.text for piece in answer)


def user(content: Any) -> Message:
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


def test_the_last_answer_again_takes_the_place_of_the_old_one(talk: Talk, served: Served) -> None:
    answers(served, "One.", "Two.", "Three.")
    text(talk.ask("first"))
    text(talk.ask("second"))
    assert text(talk.retry()) == "Three."
    assert talk.messages == [user("first"), assistant("One."), user("second"), assistant("Three.")]
    assert "One." in served.engine.submitted[-1][0] and "Two." not in served.engine.submitted[-1][0]


def test_an_answer_stopped_in_the_middle_is_kept(talk: Talk, served: Served) -> None:
    answers(served, "One two three", "Other")
    pieces = talk.ask("first")
    part = next(piece.text for piece in pieces if piece.text)
    pieces.close()
    assert 0 < len(part) < len("One two three") and talk.messages == [user("first"), assistant(part)]
    text(talk.retry())
    assert talk.messages == [user("first"), assistant("Other")]


def test_a_retry_that_fails_keeps_the_old_answer(talk: Talk, served: Served) -> None:
    answers(served, "One.", "Two.")
    text(talk.ask("first"))
    served.engine.full = True
    with pytest.raises(ServerError):
        text(talk.retry())
    assert talk.messages == [user("first"), assistant("One.")]
    served.engine.full = False
    text(talk.retry())
    assert talk.messages == [user("first"), assistant("Two.")]


def test_a_question_that_failed_can_be_asked_again(talk: Talk, served: Served) -> None:
    answers(served, "One.", "Two.", "Three.")
    text(talk.ask("first"))
    served.engine.full = True
    with pytest.raises(ServerError):
        text(talk.ask("second"))
    assert talk.messages == [user("first"), assistant("One.")]
    served.engine.full = False
    assert text(talk.retry()) == "Two."
    assert talk.messages[2:] == [user("second"), assistant("Two.")]
    talk.undo()
    assert text(talk.retry()) == "Three."
    assert talk.messages == [user("first"), assistant("Three.")]


def test_an_edited_question_takes_the_place_of_the_old_one(talk: Talk, served: Served) -> None:
    answers(served, "One.", "Two.")
    text(talk.ask("first"))
    assert text(talk.edit("first, better")) == "Two."
    assert talk.messages == [user("first, better"), assistant("Two.")]
    assert "One." not in served.engine.submitted[-1][0]


def test_an_edited_question_keeps_its_files(talk: Talk) -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:,"}}
    talk.restart([user([picture, {"type": "text", "text": "what?"}]), assistant("A dot.")])
    assert talk.question == "what?"
    with pytest.raises(ServerError, match="image"):  # the model sees none
        text(talk.edit("and now?"))
    assert talk.question == "and now?" and talk.messages[0]["content"][1]["text"] == "what?"


def test_exchanges_are_taken_back(talk: Talk, served: Served) -> None:
    answers(served, "One.", "Two.")
    text(talk.ask("first"))
    text(talk.ask("second"))
    assert talk.undo() == "second"
    assert talk.messages == [user("first"), assistant("One.")]
    assert talk.undo() == "first"
    assert talk.messages == []
    with pytest.raises(ConfigError, match="nothing to take back"):
        talk.undo()


@pytest.mark.parametrize("action", [Talk.retry, lambda talk: talk.edit("x")], ids=["retry", "edit"])
def test_nothing_has_been_asked(talk: Talk, action: Any) -> None:
    with pytest.raises(ConfigError, match="nothing has been asked yet"):
        action(talk)


def test_a_call_and_the_results_that_are_typed(thinker: Talk, thinking: Served) -> None:
    answers(thinking, RAW, "Sunny.", "Rainy.")
    thinker.tools = [TOOL]
    assert text(thinker.ask("weather?")).strip() == SAID
    assert "<can>weather" in thinking.engine.submitted[0][0]
    assert thinker.thought == THOUGHT
    first, second = thinker.open_calls
    assert json.loads(first["function"]["arguments"]) == ARGUMENTS and first["id"] != second["id"]
    assert described(first) == f"weather {json.dumps(ARGUMENTS, ensure_ascii=False)}"
    assert text(thinker.ask("20 degrees")) == "" and len(thinking.engine.submitted) == 1
    assert list(thinker.open_calls) == [second]
    assert text(thinker.ask("30 degrees")) == "Sunny." and not thinker.open_calls
    prompt = thinking.engine.submitted[1][0]
    assert f"({THOUGHT})" in prompt and f"20 degrees[{first['id']}]" in prompt and f"30 degrees[{second['id']}]" in prompt
    assert f"`{described(first)}`" in thinker.markdown() and "## Tool\n\n20 degrees" in thinker.markdown()
    assert text(thinker.retry()) == "Rainy."
    assert [each["role"] for each in thinker.messages] == ["user", "assistant", "tool", "tool", "assistant"]


def test_a_call_without_its_results_is_retried_as_a_whole(thinker: Talk, thinking: Served) -> None:
    answers(thinking, RAW, "No call.")
    thinker.tools = [TOOL]
    text(thinker.ask("weather?"))
    text(thinker.ask("20 degrees"))
    assert text(thinker.retry()) == "No call."
    assert thinker.messages == [user("weather?"), assistant("No call.")]


def test_a_call_that_is_cut_off_is_none(thinker: Talk, thinking: Served) -> None:
    thinker.tools, thinker.sampling = [TOOL], {"max_tokens": len(RAW.encode()) - 40}
    answers(thinking, RAW)
    text(thinker.ask("weather?"))
    assert not thinker.open_calls and "tool_calls" not in thinker.messages[-1]


@pytest.mark.parametrize("arguments", ["{", "[" * 5000])
def test_arguments_that_are_no_json_are_shown_as_they_are(arguments: str) -> None:
    assert described({"function": {"name": "f", "arguments": arguments}}) == f"f {arguments}"
