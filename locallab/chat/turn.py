"""One turn of the assistant: from a neutral chat request to what the engine is asked, and how its answer is to be read."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from locallab.chat.answer_parser import AnswerParser
from locallab.chat.messages import Message, written_out
from locallab.chat.reasoning import Tags, ThinkParser, tags_of
from locallab.chat.templates import ChatTemplate
from locallab.chat.tools import Lark, Tool, ToolChoice, ToolFormat, choose
from locallab.chat.tools.formats.generic import Generic
from locallab.engine.request import Constraint
from locallab.errors import InvalidField

EMBEDDED = {"json_schema", "json_object", "regex", "choice"}
"""Kinds of constraints that can be a part of a larger grammar."""

AFTER_REASONING = r"/\s*/"


@dataclasses.dataclass(frozen=True, slots=True)
class ReasoningOptions:
    """What the client wants of reasoning: on, off or as the model likes; how hard (a word for the template); at most how many
    tokens."""

    enabled: bool | None = None
    effort: str | None = None
    budget: int | None = None

    @property
    def off(self) -> bool:
        return self.enabled is False or self.effort == "none"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """A conversation to go on with. `answer` restricts the text of the answer; `variables` go to the template as they are. With
    `continues` a last message of the assistant is the beginning of the answer, which goes on behind it."""

    messages: Sequence[Message]
    tools: tuple[Tool, ...] = ()
    choice: ToolChoice = dataclasses.field(default_factory=ToolChoice)
    answer: Constraint | None = None
    reasoning: ReasoningOptions = dataclasses.field(default_factory=ReasoningOptions)
    variables: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    continues: bool = False

    @property
    def begun(self) -> str | None:
        """How the answer begins, if it has begun."""
        last = self.messages[-1]
        return last.content if self.continues and last.role == "assistant" and not last.tool_calls else None


@dataclasses.dataclass(frozen=True, slots=True)
class Turn:
    """What to ask the engine. `visible` are control tokens, by their text, that the parser has to see. `tags` enclose the
    model's reasoning, None if it does not reason; `open`: the prompt has opened them."""

    prompt: str
    constraint: Constraint | None
    visible: tuple[str, ...]
    format: ToolFormat | None
    tools: tuple[Tool, ...]
    tags: Tags | None
    open: bool

    @property
    def is_plain(self) -> bool:
        """Whether the model's text is the answer, with nothing to be read out of it."""
        return self.format is None and self.tags is None

    def parser(self) -> AnswerParser:
        """A new one for each answer."""
        reasoning = ThinkParser(self.tags, self.open) if self.tags else None
        return AnswerParser(reasoning, self.format.parser(self.tools) if self.format else None)


def plan(request: ChatRequest, template: ChatTemplate, control: Mapping[str, int]) -> Turn:
    """The turn for a model with this template and these control tokens (their ids by text).

    Raises InvalidField when the template refuses the messages, or the answer has begun as it may not.
    """
    tools = request.tools if request.choice.mode != "none" else ()
    found, begun = choose(template.source), request.begun
    if begun is not None:
        _check_begun(request, tools, found)
    tool_format = found if tools or (found.whole and begun is None) else None
    tags = None if found.whole else tags_of(template.source)
    prompt, tags, opened = _reasoned(_prompt(request, tools, tool_format, template), tags, request)
    prompt += "" if begun is None else found.lead + begun
    markers = (*(tool_format.controls if tool_format else ()), *((tags.begin, tags.end) if tags else ()))
    constraint = _constraint(request, tools, tool_format, tags, opened, Lark(control))
    return Turn(prompt, constraint, tuple(m for m in markers if m in control), tool_format, tools, tags, opened)


def _reasoned(prompt: str, tags: Tags | None, request: ChatRequest) -> tuple[str, Tags | None, bool]:
    """The prompt, in which reasoning is closed that may not be; the tags that the answer may have; whether they are open."""
    if tags is None:
        return prompt, None, False
    opened, begun = prompt.rstrip().endswith(tags.opening), request.begun is not None
    if opened and (request.reasoning.off or _cannot_think(request.answer) or begun):
        return f"{prompt}\n{tags.end}\n\n", None, False
    if begun or prompt.rstrip().endswith(tags.end):
        return prompt, None, False
    return prompt, tags, opened


def _check_begun(request: ChatRequest, tools: Sequence[Tool], tool_format: ToolFormat) -> None:
    """What enforces the whole of an answer knows nothing of a part that is there already."""
    reason = "does not go with an answer that the last message has begun"
    if request.answer is not None:
        raise InvalidField(request.answer.field, reason)
    if tools and tool_format.whole:
        raise InvalidField("tools", f"{reason}, with this model")


def _prompt(request: ChatRequest, tools: Sequence[Tool], tool_format: ToolFormat | None, template: ChatTemplate) -> str:
    messages = list(request.messages) if request.begun is None else list(request.messages[:-1])
    variables = {**_thinking(request.reasoning), **request.variables}
    is_generic = isinstance(tool_format, Generic)
    if is_generic:  # calls of earlier turns look as those to come
        messages = [written_out(message) for message in messages]
    if tools and not is_generic and template.tells_tools:
        variables["tools"] = [_described(tool) for tool in tools]
    elif tools and tool_format:
        messages = _instructed(messages, tool_format.instructions(tools))
    return template.render(messages, **variables)


def _instructed(messages: Sequence[Message], instructions: str) -> list[Message]:
    """The messages with the instructions in the first system message: many templates take one only."""
    if not messages or messages[0].role != "system":
        return [Message("system", instructions), *messages]
    head = dataclasses.replace(messages[0], content=f"{instructions}\n\n{messages[0].content}")
    return [head, *messages[1:]]


def _described(tool: Tool) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)}
    return {"type": "function", "function": function}


def _thinking(wish: ReasoningOptions) -> dict[str, Any]:
    """The variables by which templates are told: each family has its own."""
    enabled = False if wish.off else wish.enabled
    switches = {} if enabled is None else {"enable_thinking": enabled, "thinking": enabled}
    return switches | ({"reasoning_effort": wish.effort} if wish.effort and wish.effort != "none" else {})


def _cannot_think(answer: Constraint | None) -> bool:
    return answer is not None and answer.kind not in EMBEDDED


def _constraint(
    request: ChatRequest, tools: Sequence[Tool], tool_format: ToolFormat | None, tags: Tags | None, opened: bool, lark: Lark
) -> Constraint | None:
    answer = request.answer
    framed = tags is not None or (tool_format is not None and tool_format.whole)
    if not tools and (answer is None or not framed or _cannot_think(answer)):
        return answer
    if answer is not None and _cannot_think(answer):
        raise InvalidField(answer.field, "a grammar cannot be combined with tools; use a JSON schema, a regex or choices")
    text = None if answer is None else _node(answer)
    rules = [tool_format.grammar(tools, request.choice, lark, text)] if tool_format else [f"answer: {text}"]
    rules.append(_start(tags, opened, lark))
    return Constraint("lark", "\n".join(rules), answer.field if answer and not tools else "tools")


def _start(tags: Tags | None, opened: bool, lark: Lark) -> str:
    """The whole output: reasoning, if the model reasons, then the answer."""
    if tags is None:
        return "start: answer"
    if lark.is_control(tags.end):
        thought = f"thought: THOUGHT {lark.marker(tags.end)}\nTHOUGHT: /(?s:.*)/"
    else:
        thought = f"thought[lazy]: THOUGHT {lark.marker(tags.end)}\nTHOUGHT: /(?s:.*)/"
    gap = f"gap: {AFTER_REASONING}"
    begin = " ".join([lark.marker(tags.begin), *([json.dumps(tags.label)] if tags.label else [])])
    reasoning = "thought gap answer" if opened else f"answer | {begin} thought gap answer"
    return f"start: {reasoning}\n{thought}\n{gap}"


def _node(answer: Constraint) -> str:
    """The constraint as a node of a larger grammar."""
    match answer.kind:
        case "json_schema":
            return f"%json {answer.source}"
        case "json_object":
            return '%json {"type": "object"}'
        case "regex":
            return "/" + answer.source.replace("/", "\\/") + "/"
        case _:
            return "(" + " | ".join(json.dumps(choice) for choice in json.loads(answer.source)) + ")"
