"""instructor: a pydantic model out of an answer."""

from __future__ import annotations

from typing import Any, Literal

import instructor
import openai
import pydantic
from cases import case, main


class Place(pydantic.BaseModel):
    """A place."""

    city: Literal["Oslo", "Rome"]
    coastal: bool
    people: int = pydantic.Field(ge=0, le=99)


def make(url: str, mode: instructor.Mode, **more: Any) -> dict[str, Any]:
    client = instructor.from_openai(openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0), mode=mode)
    found = client.chat.completions.create(
        model="smollm2",
        response_model=more.pop("response_model", Place),
        messages=[{"role": "user", "content": "Where is the Colosseum?"}],
        max_tokens=300,
        temperature=0,
        max_retries=0,
        **more,
    )
    return {"type": type(found).__name__, **found.model_dump()}


@case
def tools(url: str) -> dict[str, Any]:
    return make(url, instructor.Mode.TOOLS)


@case
def strict_tools(url: str) -> dict[str, Any]:
    return make(url, instructor.Mode.TOOLS_STRICT)


@case
def json_schema(url: str) -> dict[str, Any]:
    return make(url, instructor.Mode.JSON_SCHEMA)


@case
def streamed(url: str) -> dict[str, Any]:
    client = instructor.from_openai(
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0), mode=instructor.Mode.JSON_SCHEMA
    )
    parts = list(
        client.chat.completions.create_partial(
            model="smollm2",
            response_model=Place,
            messages=[{"role": "user", "content": "Where is the Colosseum?"}],
            max_tokens=300,
            temperature=0,
        )
    )
    return {"parts": len(parts), **parts[-1].model_dump()}


if __name__ == "__main__":
    main()
