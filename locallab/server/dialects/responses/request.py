"""Bodies of OpenAI's Responses, as neutral requests."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta

from locallab.chat import Message, ToolCall
from locallab.chat.blocks import SEALED, BlockReader, described
from locallab.chat.json_text import dumps
from locallab.chat.messages import ROLES, arguments_text, newest
from locallab.chat.repairs import repaired
from locallab.chat.tools import Tool
from locallab.chat.tools.format import qualified
from locallab.chat.turn import ChatRequest
from locallab.engine import ModelInfo
from locallab.engine.request import SamplingParams
from locallab.errors import InvalidField
from locallab.media.intake import Intake
from locallab.server.dialects.responses.fields import RESPONSES
from locallab.server.fields.constraint import Structured, read_format
from locallab.server.fields.reasoning import of_effort
from locallab.server.fields.table import Others
from locallab.server.fields.tools import CUSTOM, NAMESPACE, read_choice, read_tools

LOGPROBS = "message.output_text.logprobs"
INPUT = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}, {"type": "null"}]}


class ResponsesBody(Structured, kw_only=True):
    input: Annotated[Any, Meta(description="a text, or the items of a conversation, oldest first", extra_json_schema=INPUT)] = (
        None
    )
    model: Annotated[str | None, Meta(description="name of the model; an unknown name is the current one")] = None
    instructions: Annotated[str | None, Meta(description="system prompt")] = None
    previous_response_id: Annotated[str | None, Meta(description="the response whose conversation continues")] = None
    stream: Annotated[bool | None, Meta(description="stream the answer")] = None
    return_progress: Annotated[bool | None, Meta(description="with stream: report prompt-processing progress")] = None
    store: Annotated[bool | None, Meta(description="false: do not store the response, so that it cannot be continued")] = None
    max_output_tokens: Annotated[int | None, Meta(description="maximum tokens of the answer, including reasoning")] = None
    tools: Annotated[Any, Meta(description="functions, namespaces of functions and custom tools; others are left out")] = None
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
    top_logprobs: Annotated[
        int | None, Meta(description="number of alternatives per token of the text; includes the logprobs")
    ] = None

    OTHERS: ClassVar[Others] = RESPONSES
    LIMITS: ClassVar[tuple[str, ...]] = ("max_output_tokens", "max_tokens")

    def params(self, info: ModelInfo, longest: int | None, **more: Any) -> SamplingParams:
        scored = self.top_logprobs or LOGPROBS in (self.include or ())
        progress = bool(self.stream and self.return_progress)
        return super().params(info, longest, logprobs=self.top_logprobs or 0 if scored else None, progress=progress, **more)

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


def chat_request(
    body: ResponsesBody, before: Sequence[Any], items: Sequence[Any], notes: list[str], media: Intake | None = None
) -> ChatRequest:
    """Return the neutral request with its files in `media`, and note omissions; `before` has the items of earlier turns. Raises
    InvalidField."""
    tools = read_tools(body.tools, notes, also=(CUSTOM, NAMESPACE))
    effort = _mapping("reasoning", body.reasoning).get("effort")
    if effort is not None and not isinstance(effort, str):
        raise InvalidField("reasoning.effort", "expected a word such as low, medium or high")
    system = [Message("system", body.instructions)] if body.instructions else []
    messages = [*system, *_messages(before, items, notes, media)]
    return ChatRequest(
        # Clients send an empty input, and request few tokens, to test the connection.
        messages=repaired(messages, notes) or [Message("user", "")],
        tools=tools,
        choice=read_choice(body.tool_choice, body.parallel_tool_calls, tools),
        answer=body.constraint(read_format(_mapping("text", body.text).get("format"), "text.format")),
        reasoning=of_effort(effort),
    )


def echo(body: ResponsesBody, model: str, tools: Sequence[Tool], params: SamplingParams) -> dict[str, Any]:
    """Return the fields of the request that are returned in the response."""
    reasoning, text = _mapping("reasoning", body.reasoning), _mapping("text", body.text)
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
        "text": {"format": text.get("format") or {"type": "text"}, "verbosity": text.get("verbosity") or "medium"},
        "tool_choice": body.tool_choice or "auto",
        "tools": _echoed(body.tools, tools),
        "top_logprobs": params.logprobs or 0,
        "top_p": params.top_p,
        "truncation": body.truncation or "disabled",
        "user": body.user,
    }


def _echoed(raw: Any, tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """Return the functions as they were read, custom tools and namespaces as they were sent."""
    functions = [
        {
            "type": "function",
            "name": tool.name,
            "description": tool.description,
            "parameters": dict(tool.parameters),
            "strict": tool.strict,
        }
        for tool in tools
        if not tool.custom and not tool.namespace
    ]
    return functions + [
        entry for entry in raw or () if entry.get("type") in (CUSTOM, NAMESPACE) and "input_schema" not in entry
    ]


def _messages(before: Sequence[Any], items: Sequence[Any], notes: list[str], media: Intake | None) -> list[Message]:
    history = [*before, *items]
    new = newest([_role(item) for item in history])
    reader = _ItemReader(notes)
    for index, item in enumerate(history):
        field = f"input[{index - len(before)}]" if index >= len(before) else "previous_response_id"
        reader.take(field, item, BlockReader(notes, index == new, media))
    return reader.finish()


def _role(item: object) -> object:
    """Return the role of the one who has said this item; None for what is no item."""
    kind = item_type(item)
    if not isinstance(item, Mapping) or kind is None:
        return None
    return item.get("role") if kind == "message" else "assistant"


def item_type(item: object) -> object:
    """Return the type of an item, which a message need not have."""
    return (item.get("type") or ("message" if "role" in item else None)) if isinstance(item, Mapping) else None


class _ItemReader:
    """Reads items into `messages`; a thought goes with the assistant's message or call that comes next."""

    def __init__(self, notes: list[str]) -> None:
        self._notes = notes
        self._messages: list[Message] = []
        self._calls: list[ToolCall] = []  # of the last message
        self._thoughts: list[str] = []

    def take(self, field: str, item: Any, reader: BlockReader) -> None:
        """Take an item. Raises InvalidField for one of a `new` message only."""
        kind = item_type(item)
        if self._calls and not str(kind).endswith("_call"):
            self._close()
        if not isinstance(item, Mapping) or (kind is None and reader.new):
            if reader.new:
                raise InvalidField(field, "expected an item: an object with a type")
            self._said(field, item)
        elif kind == "message":
            self._message(field, item, reader)
        elif kind == "reasoning":
            parts = item.get("content") or item.get("summary")  # an encrypted item has neither
            texts = [part.get("text") for part in parts if isinstance(part, Mapping)] if isinstance(parts, list) else [parts]
            self._thoughts += [text for text in texts if isinstance(text, str) and text]
        elif kind in SEALED:
            self._notes.append(f"{field}: an item of type {kind!r} is left out: only its author can read it")
        elif not item.get("call_id"):
            self._said(field, item)
        elif str(kind).endswith("_output"):
            output = BlockReader(self._notes, media=reader.media).read(f"{field}.output", item.get("output")).text
            self._messages.append(Message("tool", output, tool_call_id=str(item["call_id"])))
        elif str(kind).endswith("_call"):
            self._call(_call(str(kind), item))
        else:
            self._said(field, item)

    def finish(self) -> list[Message]:
        self._close()
        if self._thoughts:
            self._forget()
        return self._messages

    def _message(self, field: str, item: Mapping[str, Any], reader: BlockReader) -> None:
        role = item.get("role")
        if not isinstance(role, str) or role not in ROLES:
            reason = "is missing" if role is None else f"unknown role {role!r}; known: {', '.join(ROLES)}"
            if reader.new:
                raise InvalidField(f"{field}.role", reason)
            self._notes.append(f"{field}.role: {reason}; passed on as the user's")
            role = "user"
        content = reader.read(f"{field}.content", item.get("content"))
        if role == "assistant":
            self._thoughts += content.thoughts
            self._messages.append(Message(role, content.text, reasoning=self._thought()))
        else:
            if self._thoughts:
                self._forget()
            self._messages.append(Message(ROLES[role], content.whole))

    def _said(self, field: str, item: object) -> None:
        """Give an item that is unknown here as a text of the assistant, whose service has made it."""
        self._close()
        self._notes.append(f"{field}: an item of type {item_type(item)!r} is given as text")
        self._messages.append(Message("assistant", described(item), reasoning=self._thought()))

    def _call(self, call: ToolCall) -> None:
        """Add a call to the assistant's last message if that comes right before it, else to a new one."""
        last = self._messages[-1] if self._messages else None
        if last is not None and last.role == "assistant" and not self._thoughts:
            self._calls.append(call)
        else:
            self._close()
            self._messages.append(Message("assistant", "", reasoning=self._thought()))
            self._calls.append(call)

    def _close(self) -> None:
        """Give the calls to the assistant's last message."""
        if self._calls:
            last = self._messages[-1]
            self._messages[-1] = dataclasses.replace(last, tool_calls=(*last.tool_calls, *self._calls))
            self._calls = []

    def _thought(self) -> str:
        thought, self._thoughts = "\n".join(self._thoughts), []
        return thought

    def _forget(self) -> None:
        """Give thoughts that nothing has come of to the message before them, if that is the assistant's."""
        thought, last = self._thought(), self._messages[-1] if self._messages else None
        if last is not None and last.role == "assistant":
            self._messages[-1] = dataclasses.replace(last, reasoning="\n".join(filter(None, [last.reasoning, thought])))
        else:
            self._notes.append("input: reasoning that no message or call follows is left out")


def _call(kind: str, item: Mapping[str, Any]) -> ToolCall:
    """Read a call of a function, of a custom tool, or of a tool that is known to its service by the type alone."""
    name = str(item.get("name") or "") or kind.removesuffix("_call")
    if isinstance(item.get("namespace"), str):
        name = qualified(item["namespace"], name)
    if "arguments" in item:
        arguments = arguments_text(item["arguments"])
    elif kind == "custom_tool_call":
        arguments = dumps({"input": item.get("input") or ""})
    else:
        arguments = arguments_text(item.get("action") or item.get("operation") or item.get("input"))
    return ToolCall(str(item["call_id"]), name, arguments)


def _mapping(field: str, raw: Any) -> Mapping[str, Any]:
    if raw is None:
        return {}
    if not isinstance(raw, Mapping):
        raise InvalidField(field, "expected an object")
    return raw
