"""anthropic-python and ollama-python against a live server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import anthropic
import ollama
import pydantic
import pytest

from tests.support.installed_clients import Place
from tests.support.served_process import Process, counting

pytestmark = pytest.mark.clients

ASKED: Any = {"model": "smollm2", "messages": [{"role": "user", "content": "How is the weather in Oslo?"}]}
COLD: Any = {"temperature": 0}
"""Of which anthropic-python knows nothing any more."""
SCHEMA: Any = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Oslo", "Rome"]}},
    "required": ["city"],
}
TOOL: Any = {"name": "weather", "description": "Tells the weather.", "input_schema": SCHEMA}
FUNCTION: Any = {"type": "function", "function": {"name": "weather", "description": "Tells the weather.", "parameters": SCHEMA}}
CITIES = ("Oslo", "Rome")


@pytest.fixture(scope="module")
def claude(live: Process) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=live.url, api_key="none", max_retries=0, timeout=300) as client:
        yield client


@pytest.fixture(scope="module")
def llama(live: Process) -> Iterator[ollama.Client]:
    with ollama.Client(live.url, timeout=300) as client:
        yield client


def test_anthropic(claude: anthropic.Anthropic) -> None:
    answer = claude.messages.create(**ASKED, max_tokens=12, system="Be brief.", extra_body=COLD)
    assert answer.stop_reason == "max_tokens" and answer.usage.output_tokens == 12
    assert answer.content[0].type == "text" and answer.content[0].text


def test_anthropic_asynchronously(live: Process) -> None:
    async def run() -> str:
        async with (
            anthropic.AsyncAnthropic(base_url=live.url, auth_token="none", max_retries=0) as client,
            client.messages.stream(**ASKED, max_tokens=12) as stream,
        ):
            text = "".join([piece async for piece in stream.text_stream])
            assert await stream.get_final_text() == text
            return text

    assert asyncio.run(run())


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "weather"}], ids=["any", "named"])
def test_anthropic_with_tools(claude: anthropic.Anthropic, choice: Any) -> None:
    choice = {**choice, "disable_parallel_tool_use": True}
    with claude.messages.stream(**ASKED, max_tokens=200, extra_body=COLD, tools=[TOOL], tool_choice=choice) as stream:
        answer = stream.get_final_message()
    assert answer.stop_reason == "tool_use"
    (call,) = (block for block in answer.content if block.type == "tool_use")
    assert call.name == "weather" and call.input in [{"city": city} for city in CITIES]
    result: Any = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "rain"}]}
    history = [*ASKED["messages"], {"role": "assistant", "content": answer.content}, result]
    assert claude.messages.create(model="smollm2", messages=history, max_tokens=8, tools=[TOOL]).usage.output_tokens <= 8


def test_anthropic_counts_tokens_and_knows_an_overflow(claude: anthropic.Anthropic) -> None:
    usage = claude.messages.create(**ASKED, max_tokens=1).usage
    assert claude.messages.count_tokens(**ASKED).input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)
    with pytest.raises(anthropic.BadRequestError) as error:
        claude.messages.create(model="smollm2", max_tokens=1, messages=[{"role": "user", "content": "word " * 5000}])
    assert "prompt is too long: " in str(error.value)


def test_ollama(llama: ollama.Client) -> None:
    answer = llama.chat(**ASKED, options={"num_predict": 12, "temperature": 0})
    assert answer.message.content and (answer.done_reason, answer.eval_count) == ("length", 12)
    pieces = list(llama.chat(**ASKED, stream=True, options={"num_predict": 12, "temperature": 0}))
    assert any(piece.message.content for piece in pieces)
    assert [piece.done for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    raw: Any = {"prompt": counting(3), "raw": True, "options": {"num_predict": 8, "temperature": 0}}
    said = "".join(piece.response for piece in llama.generate("smollm2", stream=True, **raw))
    assert said.strip().startswith("28") and said == llama.generate("smollm2", **raw).response


@pytest.mark.parametrize("more", [{}, {"tools": [FUNCTION]}, {"format": SCHEMA}], ids=["text", "tools", "schema"])
def test_ollama_with_logprobs(llama: ollama.Client, more: Any) -> None:
    asked: Any = {**ASKED, **more, "options": {"num_predict": 40, "temperature": 0}, "logprobs": True, "top_logprobs": 2}
    for pieces in ([llama.chat(**asked)], list(llama.chat(**asked, stream=True))):
        told = [each for piece in pieces for each in piece.logprobs or ()]
        assert told and all(len(each.top_logprobs or ()) == 2 and each.logprob <= 0 for each in told)
        said = "".join(piece.message.content or "" for piece in pieces)
        assert more or "".join(each.token for each in told) == said
        assert (pieces[-1].eval_count or 0) - len(told) in (0, 1)  # the end is no part of the answer
    raw = llama.generate("smollm2", "One, two,", raw=True, logprobs=True, options={"num_predict": 4})
    assert "".join(each.token for each in raw.logprobs or ()) == raw.response and not raw.logprobs[0].top_logprobs  # type: ignore[index]


def test_ollama_with_a_schema(llama: ollama.Client) -> None:
    answer = llama.chat(**ASKED, format=Place.model_json_schema(), options={"num_predict": 200, "temperature": 0})
    assert isinstance(Place.model_validate_json(answer.message.content or ""), pydantic.BaseModel)


def test_ollama_with_tools(llama: ollama.Client) -> None:
    answer = llama.chat(**ASKED, tools=[FUNCTION], options={"num_predict": 60, "temperature": 0})
    for call in answer.message.tool_calls or ():
        assert call.function.name == "weather" and call.function.arguments["city"] in CITIES


def test_ollama_lists_models(llama: ollama.Client) -> None:
    (model,) = llama.list().models
    assert model.model and llama.show(model.model).details
    assert [running.model for running in llama.ps().models] == [model.model]
