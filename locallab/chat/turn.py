"""One turn of the assistant: a neutral chat request becomes a prompt, a constraint and a parser of the answer."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from locallab.chat.answer_parser import AnswerParser
from locallab.chat.control_tokens import SEAM
from locallab.chat.messages import Message, written_out
from locallab.chat.reasoning import Tags, ThinkParser, tags_of
from locallab.chat.templates import ChatTemplate
from locallab.chat.tools import Lark, Tool, ToolChoice, ToolFormat, choose
from locallab.chat.tools.formats.generic import Generic
from locallab.engine.request import Constraint
from locallab.errors import InvalidField
from locallab.media.attachment import Attachment
from locallab.media.marker import placed

EMBEDDED = {"json_schema", "json_object", "regex", "choice"}
"""Kinds of constraints that can be part of a larger grammar."""

AFTER_REASONING = r"/\s*/"

QUESTION, ANSWER = Message("user", SEAM), Message("assistant", SEAM)
"""Messages whose text is the beginning of no other: a seam begins none."""


@dataclasses.dataclass(frozen=True, slots=True)
class ReasoningOptions:
    """Options of reasoning: on, off or None for the model's default; an effort level for the template; a budget in tokens."""

    enabled: bool | None = None
    effort: str | None = None
    budget: int | None = None

    @property
    def off(self) -> bool:
        return self.enabled is False or self.effort == "none"

    def variables(self) -> dict[str, Any]:
        """Return the template variables that set the options; each family of models has its own."""
        enabled = False if self.off else self.enabled
        switches = {} if enabled is None else {"enable_thinking": enabled, "thinking": enabled}
        return switches | ({"reasoning_effort": self.effort} if self.effort and self.effort != "none" else {})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """A conversation to be continued. `answer` constrains the answer's text; `variables` are passed to the template unchanged.
    `media` are the attachments whose markers the messages hold, by marker.

    With `continues`, a last message of the assistant is the beginning of the answer. Without `generation_prompt`, the prompt
    of an answer that is not begun ends with the last message, and the model writes the head of the next one. `prediction` is a
    text that the answer may be like.
    """

    messages: Sequence[Message]
    tools: tuple[Tool, ...] = ()
    choice: ToolChoice = dataclasses.field(default_factory=ToolChoice)
    answer: Constraint | None = None
    reasoning: ReasoningOptions = dataclasses.field(default_factory=ReasoningOptions)
    variables: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    continues: bool = False
    generation_prompt: bool = True
    prediction: str = ""
    media: Mapping[str, Attachment] = dataclasses.field(default_factory=dict)

    @property
    def begun(self) -> str | None:
        """Return the beginning of the answer that the last message holds; None if it holds none."""
        last = self.messages[-1]
        return last.content if self.continues and last.role == "assistant" and not last.tool_calls else None

    @property
    def said(self) -> list[Message]:
        """Return the messages without the beginning of the answer."""
        return list(self.messages if self.begun is None else self.messages[:-1])

    @property
    def offered(self) -> tuple[Tool, ...]:
        """Return the tools that the model may call."""
        return self.tools if self.choice.mode != "none" else ()


@dataclasses.dataclass(frozen=True, slots=True)
class Turn:
    """Input of the engine, and the means to parse its output.

    `visible` are the texts of the control tokens that the parser needs. `tags` enclose the model's reasoning, None without
    reasoning; `open` says that the prompt has opened them. `media` are in the order of their markers in the prompt.
    """

    prompt: str
    constraint: Constraint | None
    visible: tuple[str, ...]
    format: ToolFormat | None
    tools: tuple[Tool, ...]
    tags: Tags | None
    open: bool
    forced: bool = False
    media: tuple[Attachment, ...] = ()

    @property
    def is_plain(self) -> bool:
        """Return whether the model's text is the answer itself, with nothing to parse."""
        return self.format is None and self.tags is None

    def parser(self) -> AnswerParser:
        """Return a new parser; each answer needs its own."""
        reasoning = ThinkParser(self.tags, self.open) if self.tags else None
        if self.format is None:
            return AnswerParser(reasoning)
        marks = tuple(filter(None, (self.format.begin, *self.format.controls))) if self.tools else ()
        return AnswerParser(reasoning, self.format.parser(self.tools), tools=self.tools, marks=marks, forced=self.forced)


def plan(request: ChatRequest, template: ChatTemplate, control: Mapping[str, int]) -> Turn:
    """Plan the turn for a model with this template and these control tokens (ids by text).

    Raises InvalidField if the template refuses the messages, takes too long or is missing,
    or if a constraint does not fit tools or the answer's beginning.
    """
    template = _suited(request, template)
    tools, native, begun = request.offered, choose(template.source), request.begun
    if begun is not None:  # a grammar covers a whole answer, not the rest of one
        reason = "does not go with an answer that the last message has begun"
        if request.answer is not None:
            raise InvalidField(request.answer.field, reason)
        if tools and native.whole:
            raise InvalidField("tools", f"{reason}, with this model")
    tool_format = native if tools or (native.whole and begun is None) else None
    tags = None if native.whole else tags_of(template.source)
    prompt, tags, opened = _reasoned(_prompt(request, template), tags, request)
    prompt += "" if begun is None else native.lead + begun
    markers = (*(tool_format.controls if tool_format else ()), *((tags.begin, tags.end) if tags else ()))
    constraint = _constraint(request, tools, tool_format, tags, opened, Lark(control))
    forced = bool(tools) and request.choice.mode == "required"
    prompt, media = placed(prompt, request.media)
    return Turn(prompt, constraint, tuple(m for m in markers if m in control), tool_format, tools, tags, opened, forced, media)


def upcoming(request: ChatRequest, template: ChatTemplate) -> Iterator[str]:
    """Yield prompts that part from this request's where those of later requests are likely to: where another conversation with
    its system messages and tools begins, where its last message of the user begins, and where its next turn does.

    Those that the template refuses are left out.
    """
    template = _suited(request, template)
    said = request.said
    start = next((i for i, message in enumerate(said) if message.role != "system"), len(said))
    last = next((i for i in reversed(range(len(said))) if said[i].role == "user"), start)
    for messages in ([*said[:start], QUESTION], [*said[:last], QUESTION], [*said, ANSWER, QUESTION]):
        with contextlib.suppress(InvalidField):
            yield _prompt(dataclasses.replace(request, messages=messages, continues=False), template)


def _suited(request: ChatRequest, template: ChatTemplate) -> ChatTemplate:
    return template.suited(tools=bool(request.offered), documents=bool(request.variables.get("documents")))


def _prompt(request: ChatRequest, template: ChatTemplate) -> str:
    messages, tools, tool_format = request.said, request.offered, choose(template.source)
    variables = {**request.reasoning.variables(), **request.variables}
    is_generic = bool(tools) and isinstance(tool_format, Generic)
    if is_generic:  # earlier calls look like those to come
        messages = [written_out(message) for message in messages]
    if tools and template.renders_tools and (template.for_tools or not is_generic):
        variables["tools"] = [
            {"type": "function", "function": {"name": t.name, "description": t.description, "parameters": dict(t.parameters)}}
            for t in tools
        ]
    if tools and (is_generic or not template.renders_tools):
        instructions = tool_format.instructions(tools)
        if messages and messages[0].role == "system":  # many templates take one system message only
            messages[0] = dataclasses.replace(messages[0], content=f"{instructions}\n\n{messages[0].content}")
        else:
            messages.insert(0, Message("system", instructions))
    heads = request.generation_prompt or request.begun is not None
    return template.render(messages, variables, add_generation_prompt=heads)


def _reasoned(prompt: str, tags: Tags | None, request: ChatRequest) -> tuple[str, Tags | None, bool]:
    """Return the prompt with forbidden reasoning closed, the tags that the answer may contain, and whether they are open."""
    if tags is None:
        return prompt, None, False
    opened, begun = prompt.rstrip().endswith(tags.opening), request.begun is not None
    if opened and (request.reasoning.off or _excludes_reasoning(request.answer) or begun):
        return f"{prompt}\n{tags.end}\n\n", None, False
    if begun or prompt.rstrip().endswith(tags.end):
        return prompt, None, False
    return prompt, tags, opened


def _excludes_reasoning(answer: Constraint | None) -> bool:
    return answer is not None and answer.kind not in EMBEDDED


def _constraint(
    request: ChatRequest, tools: Sequence[Tool], tool_format: ToolFormat | None, tags: Tags | None, opened: bool, lark: Lark
) -> Constraint | None:
    answer = request.answer
    framed = tags is not None or (tool_format is not None and tool_format.whole)
    if not tools and (answer is None or not framed or _excludes_reasoning(answer)):
        return answer
    if answer is not None and _excludes_reasoning(answer):
        raise InvalidField(answer.field, "a grammar cannot be combined with tools; use a JSON schema, a regex or choices")
    text = None if answer is None else _node(answer)
    rules = [tool_format.grammar(tools, request.choice, lark, text)] if tool_format else [f"answer: {text}"]
    rules.append(_start(tags, opened, lark))
    return Constraint("lark", "\n".join(rules), answer.field if answer and not tools else "tools")


def _node(answer: Constraint) -> str:
    """Return the constraint as a node of a larger grammar."""
    match answer.kind:
        case "json_schema":
            return f"%json {answer.source}"
        case "json_object":
            return '%json {"type": "object"}'
        case "regex":
            return "/" + answer.source.replace("/", "\\/") + "/"
        case _:
            return "(" + " | ".join(json.dumps(choice) for choice in json.loads(answer.source)) + ")"


def _start(tags: Tags | None, opened: bool, lark: Lark) -> str:
    """Return the rules of the whole output: reasoning, if the model reasons, then the answer."""
    if tags is None:
        return "start: answer"
    lazy = "" if lark.is_control(tags.end) else "[lazy]"
    begin = " ".join([lark.marker(tags.begin), *([json.dumps(tags.label)] if tags.label else [])])
    reasoning = "thought gap answer" if opened else f"answer | {begin} thought gap answer"
    thought = f"thought{lazy}: THOUGHT {lark.marker(tags.end)}\nTHOUGHT: /(?s:.*)/"
    return f"start: {reasoning}\n{thought}\ngap: {AFTER_REASONING}"
