"""Bodies of OpenAI's Responses, as neutral requests."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta

from locallab.chat import Message, ToolCall, normalize
from locallab.chat.messages import repaired
from locallab.chat.tools import Tool
from locallab.chat.turn import ChatRequest
from locallab.engine import ModelInfo
from locallab.engine.request import SamplingParams
from locallab.errors import InvalidField
from locallab.server.fields.constraint import read_format
from locallab.server.fields.reasoning import of_effort
from locallab.server.fields.sampling import Sampling
from locallab.server.fields.tools import read_choice, read_tools

CALLS = ("function_call", "custom_tool_call")
RESULTS = ("function_call_output", "custom_tool_call_output")
LOGPROBS = "message.output_text.logprobs"
INPUT = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}, {"type": "null"}]}


class ResponsesBody(Sampling, kw_only=True):
    """Fields that only the service uses (service_tier, prompt_cache_key, text.verbosity, ...) are ignored."""

    input: Annotated[Any, Meta(description="a text, or the items of a conversation, oldest first", extra_json_schema=INPUT)] = (
        None
    )
    model: Annotated[str | None, Meta(description="name of the model; an unknown name is the current one")] = None
    instructions: Annotated[str | None, Meta(description="system prompt")] = None
    previous_response_id: Annotated[str | None, Meta(description="the response whose conversation continues")] = None
    stream: Annotated[bool | None, Meta(description="stream the answer")] = None
    store: Annotated[bool | None, Meta(description="false: do not store the response, so that it cannot be continued")] = None
    max_output_tokens: Annotated[int | None, Meta(description="maximum tokens of the answer, including reasoning")] = None
    tools: Annotated[Any, Meta(description="functions the model may call; tools of other types are left out")] = None
    tool_choice: Annotated[Any, Meta(description="auto, none, required, or the function to call")] = None
    parallel_tool_calls: Annotated[bool | None, Meta(description="false: at most one call")] = None
    text: Annotated[Any, Meta(description="its format: text, json_object, or json_schema with a schema")] = None
    reasoning: Annotated[Any, Meta(description="its effort, and summary: any value returns reasoning as a summary")] = None
    include: Annotated[
        list[str] | None,
        Meta(
            description=f"{LOGPROBS}: return the log probability of each token of the text, but not of reasoning and calls. "
            "Other content is always included"
        ),
    ] = None
    truncation: Annotated[
        Literal["auto", "disabled"] | None, Meta(description="auto: drop the oldest turns of a conversation that is too long")
    ] = None
    metadata: Annotated[dict[str, Any] | None, Meta(description="returned in the response")] = None
    user: Annotated[str | None, Meta(description="returned in the response")] = None
    background: Annotated[bool | None, Meta(description="not supported")] = None
    conversation: Annotated[Any, Meta(description="not supported: use previous_response_id")] = None
    prompt: Annotated[Any, Meta(description="not supported: prompt templates belong to the service")] = None
    top_logprobs: Annotated[
        int | None, Meta(description="number of alternatives per token of the text; includes the logprobs")
    ] = None

    LIMITS: ClassVar[tuple[str, ...]] = ("max_output_tokens", "max_tokens")

    def check(self) -> None:
        """Raise InvalidField for unsupported fields."""
        if self.background:
            raise InvalidField("background", "is not supported: send the request and wait, or stream it")
        if self.conversation is not None:
            raise InvalidField("conversation", "is not supported: use previous_response_id")
        if self.prompt is not None:
            raise InvalidField("prompt", "is not supported: prompt templates belong to the service")

    def params(self, info: ModelInfo, longest: int | None, **more: Any) -> SamplingParams:
        scored = self.top_logprobs or LOGPROBS in (self.include or ())
        return super().params(info, longest, logprobs=self.top_logprobs or 0 if scored else None, **more)

    @property
    def summary(self) -> bool:
        """True if reasoning is returned as a summary."""
        reasoning = _mapping("reasoning", self.reasoning)
        return bool(reasoning.get("summary") or reasoning.get("generate_summary"))

    def items(self) -> list[Any]:
        """Return the input as items. Raises InvalidField."""
        if self.input is None or self.input == "":
            return []
        if isinstance(self.input, str):
            return [{"type": "message", "role": "user", "content": self.input}]
        if not isinstance(self.input, list):
            raise InvalidField("input", "expected a text or a list of items")
        return self.input


def chat_request(body: ResponsesBody, before: Sequence[Any], items: Sequence[Any], notes: list[str]) -> ChatRequest:
    """Return the neutral request, and note omissions; `before` has the items of earlier turns. Raises InvalidField."""
    tools = read_tools(body.tools, notes)
    effort = _mapping("reasoning", body.reasoning).get("effort")
    if effort is not None and not isinstance(effort, str):
        raise InvalidField("reasoning.effort", "expected a word such as low, medium or high")
    system = [Message("system", body.instructions)] if body.instructions else []
    messages = [*system, *_messages(before, items, notes)]
    return ChatRequest(
        # Clients send an empty input, and request few tokens, to test the connection.
        messages=repaired(messages, notes) or [Message("user", "")],
        tools=tools,
        choice=read_choice(body.tool_choice, body.parallel_tool_calls, tools),
        answer=read_format(_mapping("text", body.text).get("format"), "text.format"),
        reasoning=of_effort(effort),
    )


def echo(body: ResponsesBody, model: str, tools: Sequence[Tool], params: SamplingParams) -> dict[str, Any]:
    """Return the fields of the request that are returned in the response."""
    reasoning = _mapping("reasoning", body.reasoning)
    return {
        "instructions": body.instructions,
        "max_output_tokens": params.max_tokens,
        "metadata": body.metadata or {},
        "model": model,
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "reasoning": {"effort": reasoning.get("effort"), "summary": reasoning.get("summary")},
        "store": body.store is not False,
        "temperature": params.temperature,
        "text": {"format": _mapping("text", body.text).get("format") or {"type": "text"}},
        "tool_choice": body.tool_choice or "auto",
        "tools": [
            {
                "type": "function",
                "name": tool.name,
                "description": tool.description,
                "parameters": dict(tool.parameters),
                "strict": tool.strict,
            }
            for tool in tools
        ],
        "top_logprobs": params.logprobs or 0,
        "top_p": params.top_p,
        "truncation": body.truncation or "disabled",
        "user": body.user,
    }


def _described(tool: Tool) -> dict[str, Any]:
    named = {"type": "function", "name": tool.name, "description": tool.description}
    return {**named, "parameters": dict(tool.parameters), "strict": tool.strict}


def _messages(before: Sequence[Any], items: Sequence[Any], notes: list[str]) -> list[Message]:
    messages: list[Message] = []
    reasoning = ""  # of the assistant's message or call that comes next
    for index, item in enumerate([*before, *items], -len(before)):
        field = f"input[{index}]" if index >= 0 else "previous_response_id"
        if not isinstance(item, Mapping):
            raise InvalidField(field, "expected an item: an object with a type")
        kind = item.get("type") or ("message" if "role" in item else None)
        if kind == "reasoning":
            parts = item.get("content") or item.get("summary")  # an encrypted item has neither
            texts = [part.get("text") for part in parts if isinstance(part, Mapping)] if isinstance(parts, list) else []
            reasoning = "\n".join(text for text in texts if isinstance(text, str))
        elif kind == "message":
            [message] = _normalized(field, "messages[0]", {"role": item.get("role"), "content": item.get("content")})
            messages.append(dataclasses.replace(message, reasoning=reasoning) if message.role == "assistant" else message)
            reasoning = ""
        elif kind in CALLS:
            _add_call(messages, item, reasoning)
            reasoning = ""
        elif kind in RESULTS:
            [output] = _normalized(f"{field}.output", None, {"role": "user", "content": item.get("output")})
            messages.append(Message("tool", output.content, tool_call_id=str(item.get("call_id") or "") or None))
        else:
            notes.append(f"{field}: an item of type {kind!r} is left out")
    return messages


def _normalized(field: str, part: str | None, message: Mapping[str, Any]) -> list[Message]:
    """Normalize a message; errors name `field` in place of `part`, or of all."""
    try:
        return normalize([message])
    except InvalidField as error:
        raise InvalidField(error.field.replace(part, field, 1) if part else field, error.reason) from None


def _add_call(messages: list[Message], item: Mapping[str, Any], reasoning: str) -> None:
    """Add a call to the assistant's last message if that comes right before it, else to a new one."""
    raw = item.get("arguments") if item["type"] == "function_call" else {"input": item.get("input")}
    arguments = raw if isinstance(raw, str) else json.dumps(raw or {}, ensure_ascii=False)
    call = ToolCall(str(item.get("call_id") or ""), str(item.get("name") or ""), arguments)
    last = messages.pop() if messages and messages[-1].role == "assistant" else Message("assistant", "", reasoning=reasoning)
    messages.append(dataclasses.replace(last, tool_calls=(*last.tool_calls, call)))


def _mapping(field: str, raw: Any) -> Mapping[str, Any]:
    if raw is None:
        return {}
    if not isinstance(raw, Mapping):
        raise InvalidField(field, "expected an object")
    return raw
