from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from locallab.chat import ChatTemplate, Message
from locallab.chat.known_templates import CHATML
from locallab.chat.turn import ChatRequest, plan
from locallab.engine.request import SamplingParams, TokenEvent, Usage
from locallab.errors import EngineFailure, InvalidField, Overloaded, RateLimited
from locallab.server.dialects.assistant.answer import AnswerReader, AssistantFormatter, problem
from locallab.server.dialects.assistant.request import AssistantBody, PreparedQuestion, check
from tests.support.sse import parsed

THINKS = "{% for m in messages %}{{ m.content }}{% endfor %}{# <think> </think> #}"
USAGE = Usage(5, 3, 1)


def asked(task: str = "refactor", opening: str | None = None, template: str = CHATML, **body: Any) -> PreparedQuestion:
    question = check(AssistantBody(prompt="words", **body), task)
    turn = plan(ChatRequest(messages=[Message("user", "words")]), ChatTemplate(template), {})
    return PreparedQuestion(question, "tiny", ([1], SamplingParams()), opening, turn)


def read(question: PreparedQuestion, pieces: list[str]) -> tuple[str, dict[str, Any]]:
    """Return the text shown piece by piece, and the whole answer."""
    telling = AnswerReader(question)
    shown = "".join(telling.feed(piece) for piece in pieces) + telling.feed("", last=True)
    telling.end("stop", USAGE)
    return shown, telling.answer()


PIECES = st.lists(
    st.sampled_from(["```", "``", "`", "\n", "py", "<think>", "</th", "ink>", "<", " ", "x = 1", "{", '"a"', ": 1", "}"])
)


@given(
    PIECES, st.sampled_from(["refactor", "debug", "audit"]), st.sampled_from([None, "def f"]), st.sampled_from([CHATML, THINKS])
)
def test_however_an_answer_is_cut_it_is_the_same(pieces: list[str], task: str, opening: str | None, template: str) -> None:
    question = asked(task, opening, template)
    shown, answer = read(question, pieces)
    assert shown == answer["response"] and (opening is None or shown.startswith(opening))
    assert (shown, answer) == read(question, ["".join(pieces)]) == read(question, list("".join(pieces)))


@given(PIECES)
def test_events_are_the_same_answer(pieces: list[str]) -> None:
    chunks = AssistantFormatter(asked())
    news = [TokenEvent(piece) for piece in pieces] + [TokenEvent("", finish_reason="length", usage=USAGE)]
    *tokens, last = parsed((b"".join(chunks.encode([(0, each)]) for each in news) + chunks.end()).decode())
    _, answer = read(asked(), pieces)
    assert "".join(each["text"] for each in tokens) == answer.pop("response")
    assert last == {"type": "done", **answer, "finish_reason": "length"}


def test_figures() -> None:
    _, answer = read(asked(), ["x"])
    assert (answer["tokens_used"], answer["model"], answer["task"], answer["finish_reason"]) == (3, "tiny", "refactor", "stop")
    assert answer["usage"]["total_tokens"] == 8


@pytest.mark.parametrize(("text", "result"), [('{"code": "x"}', {"code": "x"}), ('{"code": ', None), ("", None)])
def test_json(text: str, result: Any) -> None:
    _, answer = read(asked("debug", format="json"), [text])
    assert answer["response"] == text and answer["result"] == result and answer["code"] == (result and "x")
    assert ("detail" in answer) == (result is None)


ERRORS: dict[str, tuple[Exception, dict[str, Any]]] = {
    "wrong": (InvalidField("top_k", "is wrong"), {"detail": "top_k: is wrong"}),
    "failed": (EngineFailure("no"), {"detail": "no"}),
    "unknown": (ZeroDivisionError("secret"), {"detail": "internal error; the server's log has the details"}),
    "busy": (Overloaded(3, 7), {"detail": "the server is busy: 3 requests are waiting already", "retry_after": 7}),
    "too many": (
        RateLimited("1 per 1 minute", 1, 99, 30),
        {"detail": "rate limit exceeded: 1 per 1 minute; try again in 30 s", "retry_after": 30},
    ),
}


@pytest.mark.parametrize(("error", "body"), ERRORS.values(), ids=ERRORS)
def test_errors_as_events(error: Exception, body: dict[str, Any]) -> None:
    assert problem(error) == {"type": "error", **body}
    assert AssistantFormatter(asked()).fail(error) == f"data: {json.dumps(problem(error), separators=(',', ':'))}\n\n".encode()
