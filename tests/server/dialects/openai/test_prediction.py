"""OpenAI's prediction: the text goes to the engine as tokens, and the usage tells what was right of its drafts."""

from __future__ import annotations

from typing import Any

import pytest

from locallab.engine.request import Usage
from locallab.server.dialects.answer_fields import timings_body, usage_body
from tests.support.http_server import Served

USER = [{"role": "user", "content": "Change it."}]
PARTS = [{"type": "text", "text": "a = "}, {"type": "text", "text": "1\n"}]


@pytest.mark.parametrize("content", ["a = 1\n", PARTS], ids=["text", "parts"])
@pytest.mark.parametrize("n", [1, 2])
def test_the_text_is_what_drafts_are_taken_from(served: Served, content: Any, n: int) -> None:
    served.script(b"a = 2")
    body = {"messages": USER, "n": n, "prediction": {"type": "content", "content": content}}
    assert served.http.post("/v1/chat/completions", json=body).status_code == 200
    assert [bytes(params.prediction) for _, params in served.engine.submitted[-n:]] == [b"a = 1\n"] * n


@pytest.mark.parametrize(
    ("prediction", "field"),
    [
        ("a = 1", "prediction"),
        ({"type": "content"}, "prediction"),
        ({"type": "diff", "content": "x"}, "prediction.type"),
        ({"type": "content", "content": [{"type": "image_url", "text": "x"}]}, "prediction.content"),
    ],
)
def test_another_shape_is_refused_by_name(served: Served, prediction: Any, field: str) -> None:
    answer = served.http.post("/v1/chat/completions", json={"messages": USER, "prediction": prediction})
    assert answer.status_code == 400 and answer.json()["error"]["param"].startswith(field)


def test_usage_and_timings_count_drafted_tokens() -> None:
    usages = [Usage(9, 50, 0, accepted_tokens=30, rejected_tokens=4), Usage(9, 50, 0, accepted_tokens=10)]
    details = usage_body(usages, 2)["completion_tokens_details"]
    assert details == {"accepted_prediction_tokens": 40, "rejected_prediction_tokens": 4}
    assert {"draft_n": 44, "draft_n_accepted": 40}.items() <= timings_body(usages, 2).items()
    plain = [Usage(9, 50, 0)]
    assert "completion_tokens_details" not in usage_body(plain) and "draft_n" not in timings_body(plain)
