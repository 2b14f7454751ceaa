"""The input items of stored responses, in pages."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from tests.support.http_server import Served


def create(served: Served, given: Any, **more: Any) -> str:
    answer = served.http.post("/v1/responses", json={"input": given, **more})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def listed(served: Served, response_id: str, **query: Any) -> dict[str, Any]:
    answer = served.http.get(f"/v1/responses/{response_id}/input_items", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()  # type: ignore[no-any-return]


def test_a_text_is_a_message(served: Served) -> None:
    page = listed(served, create(served, "hi"))
    (item,) = page["data"]
    assert item.pop("id").startswith("msg_")
    content = [{"type": "input_text", "text": "hi"}]
    assert item == {"type": "message", "role": "user", "content": content, "status": "completed"}
    assert page["object"] == "list" and page["has_more"] is False and page["first_id"] == page["last_id"]


def test_items_of_every_kind_have_an_id_that_stays(served: Served) -> None:
    given = [
        {"role": "system", "content": [{"type": "text", "text": "be brief"}]},
        {"role": "assistant", "content": "Hello", "id": "msg_own"},
        {"type": "reasoning", "summary": []},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "1"},
        {"role": "user", "content": ["a", {"type": "input_text", "text": "b"}]},
    ]
    response_id = create(served, given)
    items = listed(served, response_id, order="asc")["data"]
    assert [item["type"] for item in items] == ["message"] * 2 + [item["type"] for item in given[2:5]] + ["message"]
    assert [item["id"].partition("_")[0] for item in items] == ["msg", "msg", "rs", "fc", "fco", "msg"]
    assert items[0]["content"] == [{"type": "input_text", "text": "be brief"}]
    assert items[1]["content"] == [{"type": "output_text", "text": "Hello", "annotations": []}] and items[1]["id"] == "msg_own"
    assert items[5]["content"] == [{"type": "input_text", "text": text} for text in "ab"]
    assert listed(served, response_id)["data"] == items[::-1]
    again = create(served, [{"type": "item_reference", "id": items[0]["id"]}, {"role": "user", "content": "c"}])
    assert listed(served, again, order="asc")["data"][0] == items[0]


def test_the_conversation_is_part_of_the_input(served: Served) -> None:
    first = create(served, "one")
    output = served.http.get(f"/v1/responses/{first}").json()["output"]
    second = create(served, "two", previous_response_id=first)
    items = listed(served, second, order="asc")["data"]
    assert [item["role"] for item in items] == ["user", "assistant", "user"] and items[1] == output[0]
    before = served.engine.submitted[-1][0]
    create(served, items)  # sent back, it is the same prompt
    assert served.engine.submitted[-1][0] == before
    served.http.delete(f"/v1/responses/{first}")
    assert len(listed(served, second)["data"]) == 1


def test_pages(thinking: Served) -> None:
    served = thinking  # its context is longer
    response_id = create(served, [{"role": "user", "content": str(number)} for number in range(25)])

    def texts(**query: Any) -> list[int]:
        return [int(item["content"][0]["text"]) for item in listed(served, response_id, **query)["data"]]

    assert texts() == list(range(24, 4, -1)) and texts(limit=100, order="asc") == list(range(25))
    page = listed(served, response_id, limit=3, order="asc")
    assert page["has_more"] and page["last_id"] == page["data"][2]["id"]
    assert texts(limit=3, order="asc", after=page["last_id"]) == [3, 4, 5]
    items = served.openai.responses.input_items.list(response_id, limit=7)
    assert [int(item.content[0].text) for item in items] == list(range(24, -1, -1))  # type: ignore[union-attr]
    assert texts(after=listed(served, response_id, limit=100)["last_id"]) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [("limit", "0"), ("limit", "101"), ("limit", "x"), ("limit", "9" * 5000), ("order", "up"), ("after", "no")],
)
def test_wrong_queries(served: Served, field: str, value: str) -> None:
    response_id = create(served, "hi")
    answer = served.http.get(f"/v1/responses/{response_id}/input_items", params={field: value})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == field


def test_what_is_not_stored_and_what_cannot_be_cancelled(served: Served) -> None:
    with pytest.raises(openai.NotFoundError):
        served.openai.responses.input_items.list("resp_none")
    with pytest.raises(openai.NotFoundError):
        served.openai.responses.cancel("resp_none")
    with pytest.raises(openai.BadRequestError, match=r"Cannot cancel a synchronous response\."):
        served.openai.responses.cancel(create(served, "hi"))
