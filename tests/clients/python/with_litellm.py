"""litellm, as aider calls it."""

from __future__ import annotations

import os
from typing import Any

from cases import case, main

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it would look for a newer one on the internet

import litellm

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Oslo", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rome"]}, "coastal": {"type": "boolean"}},
    "required": ["city", "coastal"],
    "additionalProperties": False,
}


def ask(url: str, text: str = "What is Oslo?", **more: Any) -> Any:
    given: dict[str, Any] = {"model": "openai/smollm2", "max_tokens": 24, "temperature": 0, **more}
    messages = [{"role": "user", "content": text}]
    return litellm.completion(api_base=f"{url}/v1", api_key="none", messages=messages, max_retries=0, **given)


@case
def completion(url: str) -> dict[str, Any]:
    answer = ask(url)
    choice = answer.choices[0]
    return {"text": choice.message.content, "reason": choice.finish_reason, "usage": answer.usage.completion_tokens}


@case
def stream(url: str) -> dict[str, Any]:
    chunks = list(ask(url, stream=True, stream_options={"include_usage": True}))
    whole = litellm.stream_chunk_builder(chunks)
    choice = whole.choices[0]
    return {"text": choice.message.content, "reason": choice.finish_reason, "usage": whole.usage.completion_tokens}


@case
def tools(url: str) -> dict[str, Any]:
    choice = ask(url, tools=[WEATHER], tool_choice="required", parallel_tool_calls=False, max_tokens=300).choices[0]
    call = choice.message.tool_calls[0]
    return {"name": call.function.name, "arguments": call.function.arguments, "reason": choice.finish_reason}


@case
def streamed_tools(url: str) -> dict[str, Any]:
    named = {"type": "function", "function": {"name": "weather"}}
    whole = litellm.stream_chunk_builder(list(ask(url, tools=[WEATHER], tool_choice=named, max_tokens=300, stream=True)))
    (call,) = whole.choices[0].message.tool_calls
    return {"name": call.function.name, "arguments": call.function.arguments, "reason": whole.choices[0].finish_reason}


@case
def structured(url: str) -> str:
    form = {"type": "json_schema", "json_schema": {"name": "place", "strict": True, "schema": SCHEMA}}
    return ask(url, response_format=form, max_tokens=200).choices[0].message.content


def _failure(url: str, **more: Any) -> list[str]:
    try:
        ask(url, **more)
    except Exception as error:
        return [type(error).__name__, str(error)]
    return ["none", ""]


@case
def overflow(url: str) -> list[str]:
    return _failure(url, text="word " * 5000)


@case
def streamed_overflow(url: str) -> list[str]:
    return _failure(url, text="word " * 5000, stream=True)


@case
def wrong(url: str) -> list[str]:
    return _failure(url, extra_body={"min_p": 7})


@case
def anthropic(url: str) -> dict[str, Any]:
    """The same server, in the other dialect."""
    messages = [{"role": "user", "content": "What is Oslo?"}]
    answer = litellm.completion(
        model="anthropic/smollm2", api_base=url, api_key="none", messages=messages, max_tokens=24, temperature=0
    )
    return {"text": answer.choices[0].message.content, "reason": answer.choices[0].finish_reason}


@case
def ollama(url: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": "What is Oslo?"}]
    answer = litellm.completion(model="ollama_chat/smollm2", api_base=url, messages=messages, max_tokens=24, temperature=0)
    return {"text": answer.choices[0].message.content, "reason": answer.choices[0].finish_reason}


if __name__ == "__main__":
    main()
