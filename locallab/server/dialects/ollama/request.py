"""Bodies of Ollama's /api/chat and /api/generate, as neutral requests."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta

from locallab.chat import Message, normalize
from locallab.chat.messages import newest
from locallab.chat.turn import ChatRequest, ReasoningOptions
from locallab.engine import ModelInfo
from locallab.engine.request import Constraint, SamplingParams
from locallab.errors import InvalidField
from locallab.media.attachment import Attachment
from locallab.media.intake import Intake
from locallab.server.dialects.ollama.fields import BODY, GENERATE, OPTIONS
from locallab.server.fields.constraint import schema_of
from locallab.server.fields.reasoning import of_effort
from locallab.server.fields.sampling import Sampling
from locallab.server.fields.table import Others
from locallab.server.fields.tools import read_tools

CONVERSATION = {"type": ["array", "null"], "items": {"type": "object", "required": ["role"]}}


class Options(Sampling, kw_only=True):
    """The sampling options."""

    num_predict: Annotated[int | None, Meta(description="maximum tokens of the answer; -1, -2: up to the context's end")] = None
    num_ctx: Annotated[int | None, Meta(description="length of the context, which is as in the server's settings")] = None

    OTHERS: ClassVar[Others] = OPTIONS
    LIMITS: ClassVar[tuple[str, ...]] = ("num_predict", "max_tokens")

    def __post_init__(self) -> None:
        try:
            super().__post_init__()
        except InvalidField as error:
            raise InvalidField(f"options.{error.field}", error.reason) from None

    def params(self, info: ModelInfo, longest: int | None, **more: Any) -> SamplingParams:
        endless = self if self.num_predict != -2 else msgspec.structs.replace(self, num_predict=-1)
        return super(Options, endless).params(info, longest, **more)


class OllamaBody(msgspec.Struct, kw_only=True):
    """Common fields of both routes."""

    model: Annotated[str | None, Meta(description="name of the model; an unknown name is the current one")] = None
    stream: Annotated[bool | None, Meta(description="false: the whole answer at once; default: a line for each piece")] = None
    options: Annotated[Options | None, Meta(description="sampling options, under Ollama's names")] = None
    format: Annotated[Any, Meta(description='"json", or a JSON schema that the answer must match')] = None
    think: Annotated[bool | str | None, Meta(description="reasoning on or off, or its effort: low, medium, high")] = None
    keep_alive: Annotated[
        float | str | None, Meta(description="0 unloads the model afterwards; for other values the server's setting applies")
    ] = None
    logprobs: Annotated[
        bool | None, Meta(description="return the log probability of each token, including those of reasoning and calls")
    ] = None
    top_logprobs: Annotated[int | None, Meta(description="with logprobs: number of alternatives per token")] = None

    OTHERS: ClassVar[Others] = BODY

    def constraint(self) -> Constraint | None:
        """Return the constraint, if any. Raises InvalidField."""
        if self.format is None or self.format == "":
            return None
        if self.format == "json":
            return Constraint("json_object", field="format")
        if not isinstance(self.format, Mapping):
            raise InvalidField("format", 'expected "json" or a JSON schema')
        return schema_of(self.format, "format")

    def check(self) -> None:
        """Raise InvalidField for unsupported fields."""
        refuse("top_logprobs", bool(self.top_logprobs and not self.logprobs), "needs logprobs: true")

    def params(self, info: ModelInfo, longest: int | None, constraint: Constraint | None = None) -> SamplingParams:
        """As `Sampling.params`, of the options. Raises InvalidField."""
        logprobs = self.top_logprobs or 0 if self.logprobs else None
        try:
            return (self.options or Options()).params(info, longest, constraint=constraint, logprobs=logprobs)
        except InvalidField as error:
            raise InvalidField(f"options.{error.field}", error.reason) from None

    def thinking(self) -> ReasoningOptions:
        if self.think is None or self.think == "":
            return ReasoningOptions()
        return ReasoningOptions(enabled=self.think) if isinstance(self.think, bool) else of_effort(self.think)

    @property
    def leaves(self) -> bool:
        """True if the model is unloaded after the answer."""
        return self.keep_alive is not None and seconds("keep_alive", self.keep_alive) == 0


class OllamaGenerateBody(OllamaBody, kw_only=True):
    prompt: Annotated[str | None, Meta(description="the prompt; without one, the model is only loaded")] = None
    suffix: Annotated[str | None, Meta(description="text after the gap to fill in")] = None
    system: Annotated[str | None, Meta(description="system prompt")] = None
    raw: Annotated[bool | None, Meta(description="complete the prompt without the model's template")] = None
    images: Annotated[
        list[str] | None, Meta(description="pictures ahead of the prompt, each as base64, for models that see")
    ] = None

    OTHERS: ClassVar[Others] = GENERATE

    def check(self) -> None:
        super().check()
        for field in ("raw", "suffix"):
            if getattr(self, field):
                refuse("system", bool(self.system), f"cannot be combined with {field}: there is no template to put it in")
                refuse("think", bool(self.think), f"cannot be combined with {field}: there is no template to put it in")
                if field == "suffix":
                    refuse("images", bool(self.images), "cannot be combined with suffix")
        refuse("suffix", bool(self.suffix and self.raw), "cannot be combined with raw")


class OllamaChatBody(OllamaBody, kw_only=True):
    messages: Annotated[
        Any,
        Meta(description="the conversation, oldest first; without one, the model only loads", extra_json_schema=CONVERSATION),
    ] = None
    tools: Annotated[Any, Meta(description="functions the model may call")] = None


def prompted(body: OllamaGenerateBody, marks: str = "", media: Mapping[str, Attachment] = MappingProxyType({})) -> ChatRequest:
    """Return the prompt as a message, behind the markers of its pictures. Raises InvalidField."""
    system = [Message("system", body.system)] if body.system else []
    messages = [*system, Message("user", marks + (body.prompt or ""))]
    return ChatRequest(messages=messages, answer=body.constraint(), reasoning=body.thinking(), media=media)


def conversation(body: OllamaChatBody, notes: list[str], media: Intake | None = None) -> ChatRequest:
    tools = read_tools(body.tools, notes)
    sees = media is not None and "image" in media.kinds
    messages = normalize(list(_with_ids(body.messages, sees)), notes, media=media)
    return ChatRequest(messages=messages, tools=tools, answer=body.constraint(), reasoning=body.thinking())


def _with_ids(messages: object, sees: bool) -> Iterator[object]:
    """Yield the messages with ids for their calls, which this dialect need not have, and with images as parts of the content
    for a model that does not see them.

    The ids have the shape that the strictest template takes, and are the same each time, for the prefix cache.
    """
    if not isinstance(messages, list):
        raise InvalidField("messages", "expected a list of messages")
    new = newest([each.get("role") if isinstance(each, Mapping) else None for each in messages])
    count = 0
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            yield message
            continue
        if not sees and (images := message.get("images")):
            refuse(f"messages[{index}].images", index == new, "this model takes no images")
            shown = [{"type": "image", "data": each} for each in (images if isinstance(images, list) else [images])]
            content = message.get("content")
            message = {**message, "content": [*(content if isinstance(content, list) else [content or ""]), *shown]}
        calls = message.get("tool_calls")
        if isinstance(calls, list):
            numbered = [
                {"id": f"call{at:05}", **call} if isinstance(call, Mapping) else call for at, call in enumerate(calls, count)
            ]
            count += len(calls)
            message = {**message, "tool_calls": numbered}
        elif message.get("role") == "tool":
            message = {**message, "name": message.get("tool_name") or message.get("name")}
        yield message


def refuse(field: str, wanted: bool, reason: str) -> None:
    if wanted:
        raise InvalidField(field, reason)


UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(rf"(\d+(?:\.\d*)?|\.\d+)({'|'.join(sorted(UNITS, key=len, reverse=True))})")
_WHOLE = re.compile(rf"(?P<sign>[-+]?)(?P<parts>(?:{_PART.pattern})+)")


def seconds(field: str, raw: float | str) -> float:
    """Parse seconds, or a text such as 5m, 1h30m or -1. A negative value means forever. Raises InvalidField."""
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
