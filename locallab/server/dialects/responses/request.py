"""Requests of OpenAI's Responses: what a body asks of a model."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta

from locallab.chat import Message, ToolCall, normalize
from locallab.chat.messages import repaired
from locallab.chat.tools import Tool
from locallab.chat.turn import ChatRequest, ReasoningOptions
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
    """Fields of the service that mean nothing here (service_tier, prompt_cache_key, text.verbosity, ...) are ignored."""

    input: Annotated[Any, Meta(description="a text, or the items of a conversation, oldest first", extra_json_schema=INPUT)] = (
        None
    )
    model: Annotated[str | None, Meta(description="the model to ask; an unknown name is the current one")] = None
    instructions: Annotated[str | None, Meta(description="what the model is told beforehand")] = None
    previous_response_id: Annotated[str | None, Meta(description="the response whose conversation goes on")] = None
    stream: Annotated[bool | None, Meta(description="send the answer while it is written")] = None
    store: Annotated[bool | None, Meta(description="false: keep nothing, so that nothing can go on from it")] = None
    max_output_tokens: Annotated[int | None, Meta(description="most tokens of the answer, what it thinks included")] = None
    tools: Annotated[Any, Meta(description="functions that the model may call; tools of other types are left out")] = None
    tool_choice: Annotated[Any, Meta(description="auto, none, required, or the function to call")] = None
    parallel_tool_calls: Annotated[bool | None, Meta(description="false: at most one call")] = None
    text: Annotated[Any, Meta(description="its format: text, json_object, or json_schema with a schema")] = None
    reasoning: Annotated[Any, Meta(description="its effort, and summary: any puts what is thought into a summary")] = None
    include: Annotated[
        list[str] | None,
        Meta(
            description=f"{LOGPROBS}: tell how likely each token of the text was; of the tokens of reasoning and of calls "
            "nothing is told. All else that is there comes anyway"
        ),
    ] = None
    truncation: Annotated[
        Literal["auto", "disabled"] | None, Meta(description="auto: leave out the oldest turns where all are too long")
    ] = None
    metadata: Annotated[dict[str, Any] | None, Meta(description="comes back in the response")] = None
    user: Annotated[str | None, Meta(description="comes back in the response")] = None
    background: Annotated[bool | None, Meta(description="not supported")] = None
    conversation: Annotated[Any, Meta(description="not supported: use previous_response_id")] = None
    prompt: Annotated[Any, Meta(description="not supported: templates of prompts are the service's own")] = None
    top_logprobs: Annotated[
        int | None, Meta(description="likeliest tokens to tell in place of each of the text; includes the logprobs too")
    ] = None

    LIMITS: ClassVar[tuple[str, ...]] = ("max_output_tokens", "max_tokens")

    def check(self) -> None:
        """Raises InvalidField for what cannot be heeded."""
        _refuse("background", bool(self.background), "is not supported: send the request and wait, or stream it")
        _refuse("conversation", self.conversation is not None, "is not supported: use previous_response_id")
        _refuse("prompt", self.prompt is not None, "is not supported: templates of prompts are the service's own")

    def params(self, n_vocab: int, longest: int | None, **more: Any) -> SamplingParams:
        scored = self.top_logprobs or LOGPROBS in (self.include or ())
        return super().params(n_vocab, longest, logprobs=self.top_logprobs or 0 if scored else None, **more)

    @property
    def summary(self) -> bool:
        """Whether what the model thinks is told as a summary."""
        wanted = _mapping("reasoning", self.reasoning)
        return bool(wanted.get("summary") or wanted.get("generate_summary"))

    def items(self) -> list[Any]:
        """The input as items. Raises InvalidField."""
        if self.input is None or self.input == "":
            return []
        if isinstance(self.input, str):
            return [{"type": "message", "role": "user", "content": self.input}]
        if not isinstance(self.input, list):
            raise InvalidField("input", "expected a text or a list of items")
        return self.input


def chat_request(body: ResponsesBody, before: Sequence[Any], items: Sequence[Any], notes: list[str]) -> ChatRequest:
    """The neutral request; `before` are the items of the conversation that goes on. Raises InvalidField."""
    tools = read_tools(body.tools, notes)
    system = [Message("system", body.instructions)] if body.instructions else []
    messages = [*system, *_messages(before, items, notes)]
    return ChatRequest(
        # Clients ask for nothing, and for few tokens of it, to see whether somebody answers.
        messages=repaired(messages, notes) or [Message("user", "")],
        tools=tools,
        choice=read_choice(body.tool_choice, body.parallel_tool_calls, tools),
        answer=read_format(_mapping("text", body.text).get("format"), "text.format"),
        reasoning=_thinking(body),
    )


def echo(body: ResponsesBody, model: str, tools: Sequence[Tool], params: SamplingParams) -> dict[str, Any]:
    """What of the request comes back in the response."""
    wanted = _mapping("reasoning", body.reasoning)
    return {
        "instructions": body.instructions,
        "max_output_tokens": params.max_tokens,
        "metadata": body.metadata or {},
        "model": model,
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "reasoning": {"effort": wanted.get("effort"), "summary": wanted.get("summary")},
        "store": body.store is not False,
        "temperature": params.temperature,
        "text": {"format": _mapping("text", body.text).get("format") or {"type": "text"}},
        "tool_choice": body.tool_choice or "auto",
        "tools": [_described(tool) for tool in tools],
        "top_logprobs": params.logprobs or 0,
        "top_p": params.top_p,
        "truncation": body.truncation or "disabled",
        "user": body.user,
    }


def _described(tool: Tool) -> dict[str, Any]:
    named = {"type": "function", "name": tool.name, "description": tool.description}
    return {**named, "parameters": dict(tool.parameters), "strict": tool.strict}


def _thinking(body: ResponsesBody) -> ReasoningOptions:
    effort = _mapping("reasoning", body.reasoning).get("effort")
    if effort is not None and not isinstance(effort, str):
        raise InvalidField("reasoning.effort", "expected a word such as low, medium or high")
    return of_effort(effort)


def _messages(before: Sequence[Any], items: Sequence[Any], notes: list[str]) -> list[Message]:
    messages: list[Message] = []
    thought = ""  # of the assistant's message or call that comes next
    for index, item in enumerate([*before, *items], -len(before)):
        field = f"input[{index}]" if index >= 0 else "previous_response_id"
        if not isinstance(item, Mapping):
            raise InvalidField(field, "expected an item: an object with a type")
        kind = item.get("type") or ("message" if "role" in item else None)
        if kind == "reasoning":
            thought = _thought(item)
        elif kind == "message":
            message = _message(field, item)
            messages.append(dataclasses.replace(message, reasoning=thought) if message.role == "assistant" else message)
            thought = ""
        elif kind in CALLS:
            _add_call(messages, item, thought)
            thought = ""
        elif kind in RESULTS:
            result = _text(f"{field}.output", item.get("output"))
            messages.append(Message("tool", result, tool_call_id=str(item.get("call_id") or "") or None))
        else:
            notes.append(f"{field}: an item of type {kind!r} is left out")
    return messages


def _message(field: str, item: Mapping[str, Any]) -> Message:
    try:
        [message] = normalize([{"role": item.get("role"), "content": item.get("content")}])
    except InvalidField as error:
        raise InvalidField(error.field.replace("messages[0]", field, 1), error.reason) from None
    return message


def _text(field: str, content: Any) -> str:
    """The text of a content, which may be a list of parts."""
    try:
        return normalize([{"role": "user", "content": content}])[0].content
    except InvalidField as error:
        raise InvalidField(field, error.reason) from None


def _thought(item: Mapping[str, Any]) -> str:
    """What a reasoning item says; of one that was encrypted, or made shorter, nothing or the summary."""
    parts = item.get("content") or item.get("summary")
    texts = [part.get("text") for part in parts if isinstance(part, Mapping)] if isinstance(parts, list) else []
    return "\n".join(text for text in texts if isinstance(text, str))


def _add_call(messages: list[Message], item: Mapping[str, Any], thought: str) -> None:
    """A call belongs to the message that the assistant has just written, if it has written one."""
    given = item.get("arguments") if item["type"] == "function_call" else {"input": item.get("input")}
    written = given if isinstance(given, str) else json.dumps(given or {}, ensure_ascii=False)
    call = ToolCall(str(item.get("call_id") or ""), str(item.get("name") or ""), written)
    last = messages.pop() if messages and messages[-1].role == "assistant" else Message("assistant", "", reasoning=thought)
    messages.append(dataclasses.replace(last, tool_calls=(*last.tool_calls, call)))


def _mapping(field: str, raw: Any) -> Mapping[str, Any]:
    if raw is None:
        return {}
    if not isinstance(raw, Mapping):
        raise InvalidField(field, "expected an object")
    return raw


def _refuse(field: str, wanted: bool, reason: str) -> None:
    if wanted:
        raise InvalidField(field, reason)
