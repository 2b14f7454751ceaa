"""Bodies of Ollama's /api/chat and /api/generate, with their options and durations, as neutral requests."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta

from locallab.chat import Message, normalize
from locallab.chat.turn import ChatRequest, ReasoningOptions
from locallab.engine.request import Constraint, SamplingParams
from locallab.errors import InvalidField
from locallab.server.fields.constraint import schema_of
from locallab.server.fields.reasoning import of_effort
from locallab.server.fields.sampling import Sampling
from locallab.server.fields.tools import read_tools

CONVERSATION = {"type": ["array", "null"], "items": {"type": "object", "required": ["role"]}}

OFF: Mapping[str, Any] = {"mirostat": 0, "tfs_z": 1, "penalize_newline": True}
"""Ways to draw that we have not, and the value that stands for doing without."""


class Options(Sampling, kw_only=True):
    """Those that draw the answer. What Ollama needs to load a model (num_gpu, num_thread, ...) is the server's own business."""

    num_predict: int | None = None
    num_ctx: int | None = None
    mirostat: int | None = None
    tfs_z: float | None = None
    penalize_newline: bool | None = None

    LIMITS: ClassVar[tuple[str, ...]] = ("num_predict", "max_tokens")

    def params(self, n_vocab: int, longest: int | None, **more: Any) -> SamplingParams:
        for field, off in OFF.items():
            value = getattr(self, field)
            refuse(field, value not in (None, off), f"is not supported; leave it out, or set it to {json.dumps(off)}")
        endless = self if self.num_predict != -2 else msgspec.structs.replace(self, num_predict=-1)
        return super(Options, endless).params(n_vocab, longest, **more)


class OllamaBody(msgspec.Struct, kw_only=True):
    """What both routes have in common."""

    model: Annotated[str | None, Meta(description="the model to ask; an unknown name is the current one")] = None
    stream: Annotated[bool | None, Meta(description="false: the answer in one piece; a line for each piece otherwise")] = None
    options: Annotated[Options | None, Meta(description="how the answer is drawn, as Ollama names it")] = None
    format: Annotated[Any, Meta(description='"json", or a JSON schema that the answer must match')] = None
    think: Annotated[bool | str | None, Meta(description="whether to think first, or how hard: low, medium, high")] = None
    keep_alive: Annotated[
        float | str | None, Meta(description="0 unloads the model afterwards; otherwise the server's own setting counts")
    ] = None
    logprobs: Annotated[
        bool | None, Meta(description="tell how likely each token was, those of thinking and of calls included")
    ] = None
    top_logprobs: Annotated[int | None, Meta(description="with logprobs: likeliest tokens to tell in place of each")] = None

    def constraint(self) -> Constraint | None:
        if self.format is None or self.format == "":
            return None
        if self.format == "json":
            return Constraint("json_object", field="format")
        if not isinstance(self.format, Mapping):
            raise InvalidField("format", 'expected "json" or a JSON schema')
        return schema_of(self.format, "format")

    def check(self) -> None:
        """Raises InvalidField for what cannot be heeded."""
        refuse("top_logprobs", bool(self.top_logprobs and not self.logprobs), "needs logprobs: true")

    def params(self, n_vocab: int, longest: int | None, constraint: Constraint | None = None) -> SamplingParams:
        """As `Sampling.params`, of the options. Raises InvalidField."""
        logprobs = self.top_logprobs or 0 if self.logprobs else None
        try:
            return (self.options or Options()).params(n_vocab, longest, constraint=constraint, logprobs=logprobs)
        except InvalidField as error:
            raise InvalidField(f"options.{error.field}", error.reason) from None

    def thinking(self) -> ReasoningOptions:
        if self.think is None or self.think == "":
            return ReasoningOptions()
        return ReasoningOptions(enabled=self.think) if isinstance(self.think, bool) else of_effort(self.think)

    @property
    def leaves(self) -> bool:
        """Whether the model is to go when the answer is sent."""
        return self.keep_alive is not None and seconds("keep_alive", self.keep_alive) == 0


class OllamaGenerateBody(OllamaBody, kw_only=True):
    prompt: Annotated[str | None, Meta(description="what to answer; none or an empty one loads the model")] = None
    suffix: Annotated[str | None, Meta(description="the text that follows: what is between is filled in")] = None
    system: Annotated[str | None, Meta(description="what the model is told beforehand")] = None
    raw: Annotated[bool | None, Meta(description="go on with the prompt as it stands, without the model's template")] = None
    template: Annotated[str | None, Meta(description="not supported: the model's own counts")] = None
    context: Annotated[list[int] | None, Meta(description="not supported: send the conversation to /api/chat")] = None
    images: Annotated[list[Any] | None, Meta(description="not supported")] = None

    def check(self) -> None:
        super().check()
        refuse("template", bool(self.template), "is not supported: the model's own counts; `raw` does without")
        refuse("context", bool(self.context), "is not supported: send the conversation to /api/chat")
        refuse("images", bool(self.images), "this model takes no images")
        for field in ("raw", "suffix"):
            if getattr(self, field):
                refuse("system", bool(self.system), f"does not go with {field}: there is no template to put it in")
                refuse("think", bool(self.think), f"does not go with {field}: there is no template to tell the model")
        refuse("suffix", bool(self.suffix and self.raw), "does not go with raw: the prompt is no text as it stands then")


class OllamaChatBody(OllamaBody, kw_only=True):
    messages: Annotated[
        Any, Meta(description="the conversation, oldest first; none loads the model", extra_json_schema=CONVERSATION)
    ] = None
    tools: Annotated[Any, Meta(description="functions that the model may call")] = None


def prompted(body: OllamaGenerateBody) -> ChatRequest:
    system = [Message("system", body.system)] if body.system else []
    messages = [*system, Message("user", body.prompt or "")]
    return ChatRequest(messages=messages, answer=body.constraint(), reasoning=body.thinking())


def conversation(body: OllamaChatBody, notes: list[str]) -> ChatRequest:
    tools = read_tools(body.tools, notes)
    messages = normalize(list(_with_ids(body.messages)), notes)
    return ChatRequest(messages=messages, tools=tools, answer=body.constraint(), reasoning=body.thinking())


def _with_ids(messages: object) -> Iterator[object]:
    """The messages with ids for their calls, which this dialect need not have: a result answers the first open call of its
    tool. They have the shape that the strictest template takes, and are the same each time, for the prefix cache."""
    if not isinstance(messages, list):
        raise InvalidField("messages", "expected a list of messages")
    waiting: list[tuple[str, str]] = []
    count = 0
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            yield message
            continue
        refuse(f"messages[{index}].images", bool(message.get("images")), "this model takes no images")
        calls = message.get("tool_calls")
        if isinstance(calls, list):
            message = {**message, "tool_calls": [_with_id(call, count + i) for i, call in enumerate(calls)]}
            waiting += [_named(call) for call in message["tool_calls"]]
            count += len(calls)
        elif message.get("role") == "tool" and not message.get("tool_call_id"):
            name = message.get("tool_name") or message.get("name")
            found = next((each for each in waiting if each[1] == name), next(iter(waiting), None))
            if found:
                waiting.remove(found)
            message = {**message, "name": name, "tool_call_id": found and found[0]}
        yield message


def _with_id(call: object, number: int) -> object:
    return {"id": f"call{number:05}", **call} if isinstance(call, Mapping) else call


def _named(call: object) -> tuple[str, str]:
    """A call's id, and what it calls."""
    function = call.get("function") if isinstance(call, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    return (str(call.get("id")) if isinstance(call, Mapping) else "", str(name))


def refuse(field: str, wanted: bool, reason: str) -> None:
    if wanted:
        raise InvalidField(field, reason)


UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(rf"(\d+(?:\.\d*)?|\.\d+)({'|'.join(sorted(UNITS, key=len, reverse=True))})")
_WHOLE = re.compile(rf"(?P<sign>[-+]?)(?P<parts>(?:{_PART.pattern})+)")


def seconds(field: str, raw: float | str) -> float:
    """A number of seconds, or a text such as 5m, 1h30m or -1. Below zero is for ever. Raises InvalidField."""
    if not isinstance(raw, str):
        return float(raw)
    found = _WHOLE.fullmatch(raw.strip())
    if found:
        total = sum(float(amount) * UNITS[unit] for amount, unit in _PART.findall(found["parts"]))
        return -total if found["sign"] == "-" else total
    try:
        return float(raw)
    except ValueError:
        raise InvalidField(field, f"expected seconds or a duration such as 5m or 1h30m, got {raw!r}") from None
