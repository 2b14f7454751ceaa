"""openai-python against a live server: sync, async, parsing, tools, its streaming helpers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pydantic
import pytest

from tests.support.installed_clients import Place
from tests.support.served_process import Process, counting

pytestmark = pytest.mark.clients

USER: Any = [{"role": "user", "content": "How is the weather in Oslo?"}]


class Weather(pydantic.BaseModel):
    """Tells the weather."""

    city: Literal["Oslo", "Rome"]


TIME: Any = {"type": "function", "function": {"name": "time", "description": "Tells the time."}}
WEATHER: Any = openai.pydantic_function_tool(Weather, name="weather")
NAMED: Any = {"type": "function", "function": {"name": "weather"}}


@pytest.fixture(scope="module")
def client(live: Process) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0, timeout=300) as client:
        yield client


def asked(**more: Any) -> dict[str, Any]:
    return {"model": "smollm2", "messages": USER, "temperature": 0, "max_tokens": 200, **more}


def test_sync_and_async_say_the_same(live: Process, client: openai.OpenAI) -> None:
    more: Any = {"model": "smollm2", "prompt": counting(3), "temperature": 0, "max_tokens": 12}

    async def run() -> Any:
        async with live.client as client:
            return await client.completions.create(**more), await client.chat.completions.create(**asked(max_tokens=12))

    alone, (awaited, chat) = client.completions.create(**more), asyncio.run(run())
    assert alone.choices[0].text == awaited.choices[0].text
    for answer in (alone, awaited, chat, client.chat.completions.create(**asked(max_tokens=12))):
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage and answer.usage.completion_tokens == 12


def test_parse(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(**asked(response_format=Place))
    assert isinstance(answer.choices[0].message.parsed, Place) and answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("choice", ["required", NAMED], ids=["required", "named"])
def test_tools(client: openai.OpenAI, choice: Any) -> None:
    answer = client.chat.completions.parse(
        **asked(tools=[WEATHER], tool_choice=choice, parallel_tool_calls=False), response_format=openai.omit
    )
    (call,) = answer.choices[0].message.tool_calls or ()
    assert call.function.name == "weather" and isinstance(call.function.parsed_arguments, Weather)
    assert answer.choices[0].finish_reason == "tool_calls"


def test_the_tool_that_is_named_is_called(client: openai.OpenAI) -> None:
    named = {"type": "function", "function": {"name": "time"}}
    choice = client.chat.completions.create(**asked(tools=[WEATHER, TIME], tool_choice=named)).choices[0]
    (call,) = choice.message.tool_calls or ()
    assert (call.function.name, json.loads(call.function.arguments)) == ("time", {})  # type: ignore[union-attr]


def test_no_tool_is_called(client: openai.OpenAI) -> None:
    choice = client.chat.completions.create(**asked(tools=[WEATHER], tool_choice="none", max_tokens=12)).choices[0]
    assert not choice.message.tool_calls and choice.message.content


def test_stream_helper(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(**asked(response_format=Place), stream_options={"include_usage": True}) as stream:
        kinds = [event.type for event in stream]
        whole = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= set(kinds)
    assert isinstance(whole.choices[0].message.parsed, Place)
    assert whole.usage and whole.usage.completion_tokens > 0


def test_stream_helper_with_tools(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(**asked(tools=[WEATHER], tool_choice=NAMED)) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
    assert [event.name for event in done] == ["weather"] and isinstance(done[0].parsed_arguments, Weather)


def test_responses(client: openai.OpenAI) -> None:
    answer = client.responses.parse(model="smollm2", input="Where is the Colosseum?", text_format=Place, max_output_tokens=200)
    assert isinstance(answer.output_parsed, Place)
    more: Any = {"text_format": Place, "max_output_tokens": 200, "previous_response_id": answer.id}
    with client.responses.stream(model="smollm2", input="And Oslo?", **more) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        whole = stream.get_final_response()
    assert whole.output_text == text and isinstance(whole.output_parsed, Place)


def test_logprobs_of_responses(client: openai.OpenAI) -> None:
    asked: Any = {"model": "smollm2", "input": "Where is the Colosseum?", "temperature": 0, "max_output_tokens": 200}
    asked |= {"include": ["message.output_text.logprobs"], "top_logprobs": 2, "text_format": Place}
    with client.responses.stream(**asked) as stream:
        told = [each for event in stream if event.type == "response.output_text.delta" for each in event.logprobs]
        whole = stream.get_final_response()
    assert isinstance(whole.output_parsed, Place)
    assert client.responses.retrieve(whole.id).output_text == whole.output_text
    for answer in (whole, client.responses.retrieve(whole.id), client.responses.parse(**asked)):
        (part,) = answer.output[0].content  # type: ignore[union-attr]
        assert part.type == "output_text" and part.logprobs
        assert bytes(byte for each in part.logprobs for byte in each.bytes).decode() == part.text
        assert all(len(each.top_logprobs) == 2 and each.logprob <= 0 for each in part.logprobs)
        if answer.id == whole.id:
            assert [each.token for each in part.logprobs] == [each.token for each in told]


def test_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(**asked(messages=[{"role": "user", "content": "word " * 5000}]))
    assert (error.value.code, error.value.param) == ("context_length_exceeded", "messages")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("a/model/nobody/knows")
    assert client.models.retrieve(client.models.list().data[0].id).object == "model"
