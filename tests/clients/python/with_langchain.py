"""LangChain's ChatOpenAI."""

from __future__ import annotations

from typing import Any, Literal

import pydantic
from cases import case, main
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI


class Place(pydantic.BaseModel):
    """A place."""

    city: Literal["Oslo", "Rome"]
    coastal: bool
    people: int = pydantic.Field(ge=0, le=99)


@tool
def weather(city: Literal["Oslo", "Rome"]) -> str:
    """Tells the weather."""
    return "rain"


@tool
def time() -> str:
    """Tells the time."""
    return "noon"


def model(url: str, **more: Any) -> ChatOpenAI:
    return ChatOpenAI(
        base_url=f"{url}/v1", api_key="none", model="smollm2", temperature=0, max_tokens=more.pop("max_tokens", 24), **more
    )


@case
def invoke(url: str) -> dict[str, Any]:
    answer = model(url).invoke([("system", "Be brief."), ("user", [{"type": "text", "text": "What is Oslo?"}])])
    reason = answer.response_metadata["finish_reason"]
    return {"text": answer.content, "reason": reason, "usage": dict(answer.usage_metadata or {}), "calls": answer.tool_calls}


@case
def stream(url: str) -> dict[str, Any]:
    chunks = list(model(url, stream_usage=True).stream("What is Oslo?"))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    said = {
        "text": whole.content,
        "reason": whole.response_metadata["finish_reason"],
        "usage": dict(whole.usage_metadata or {}),
    }
    return {**said, "chunks": len(chunks)}


@case
def structured(url: str) -> dict[str, Any]:
    made = model(url, max_tokens=200).with_structured_output(Place, method="json_schema", strict=True)
    found = made.invoke("Where is the Colosseum?")
    return {"type": type(found).__name__, **found.model_dump()}


@case
def structured_by_a_call(url: str) -> dict[str, Any]:
    found = (
        model(url, max_tokens=200).with_structured_output(Place, method="function_calling").invoke("Where is the Colosseum?")
    )
    return {"type": type(found).__name__, **found.model_dump()}


@case
def required(url: str) -> list[Any]:
    bound = model(url, max_tokens=300).bind_tools([weather, time], tool_choice="required", parallel_tool_calls=False)
    return bound.invoke("How is the weather in Oslo?").tool_calls


@case
def named(url: str) -> list[Any]:
    bound = model(url, max_tokens=300).bind_tools([weather, time], tool_choice="time")
    return bound.invoke("How is the weather in Oslo?").tool_calls


@case
def streamed_call(url: str) -> dict[str, Any]:
    bound = model(url, max_tokens=300).bind_tools([weather, time], tool_choice="weather")
    chunks = list(bound.stream("How is the weather in Oslo?"))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    return {"calls": whole.tool_calls, "reason": whole.response_metadata["finish_reason"]}


@case
def result(url: str) -> str:
    """The whole round: a call, its result, the answer."""
    asked = HumanMessage("How is the weather in Oslo?")
    call = model(url, max_tokens=300).bind_tools([weather], tool_choice="weather").invoke([asked])
    results = [ToolMessage(weather.invoke(each["args"]), tool_call_id=each["id"]) for each in call.tool_calls]
    answer = model(url).bind_tools([weather], tool_choice="none").invoke([asked, call, *results])
    return type(answer.content).__name__


@case
def batch(url: str) -> list[int]:
    answers = model(url, n=2).generate([[HumanMessage("What is Oslo?")], [HumanMessage("What is Rome?")]])
    return [len(each) for each in answers.generations]


if __name__ == "__main__":
    main()
