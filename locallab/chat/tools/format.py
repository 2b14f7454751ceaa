"""The interface of tool-call formats, and the tools and choices that they take."""

from __future__ import annotations

import abc
import dataclasses
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

from locallab.chat.deltas import Parser
from locallab.chat.json_schema import closed, relaxed
from locallab.chat.tools.free_form import INPUT


@dataclasses.dataclass(frozen=True, slots=True)
class Tool:
    """A function the model may call. `parameters` is the JSON schema of its arguments, an object; empty means no arguments.

    With `strict` a schema that cannot be enforced in full is an error. Otherwise it is relaxed to what can be enforced, and
    properties that it does not name are forbidden. `field` names the tool in error messages, such as `tools[0]`.

    A `custom` tool takes a text, its only argument, and `pattern` is the regular expression of that text, if it has a grammar.
    The client knows a tool of a `namespace` by its own name, which follows that of the namespace in `name`.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    strict: bool = False
    field: str = "tools"
    custom: bool = False
    pattern: str | None = None
    namespace: str = ""

    @property
    def own_name(self) -> str:
        return self.name.removeprefix(qualified(self.namespace, ""))

    @property
    def enforced(self) -> Mapping[str, Any]:
        """Return the parameters with the pattern, which models are not shown: they are shown the grammar."""
        if self.pattern is None:
            return self.parameters
        text = {"type": "string", "pattern": f"^(?:{self.pattern})$"}
        return {**self.parameters, "properties": {INPUT: text}}


def qualified(namespace: str, name: str) -> str:
    """Return the name under which the model knows a function of a namespace."""
    return f"{namespace.removesuffix('__')}__{name}" if namespace else name


@dataclasses.dataclass(frozen=True, slots=True)
class ToolChoice:
    """Constraint on calls: any number, none or at least one; only of `names`, if any; at most one unless `parallel`."""

    mode: Literal["auto", "none", "required"] = "auto"
    names: tuple[str, ...] = ()
    parallel: bool = True


NewId = Callable[[], str]

NAME = "<name of the tool>"
ARGUMENTS = "{<arguments as JSON>}"
JSON_CALL = f'{{"name": "{NAME}", "arguments": {ARGUMENTS}}}'
"""Placeholders of a call's parts in examples."""

MOST_CALLS = 16
"""Limit of one answer: small models repeat a call endlessly."""

TEXT = "TEXT: /(?s:.*)/"
"""The rule for any text."""


def call_id() -> str:
    return f"call_{secrets.token_hex(12)}"


class Lark:
    """Writer of Lark grammars for llguidance. `control` maps the texts of the model's control tokens to their ids.

    A marker that is a control token is written as its id: its text alone would never be generated.
    """

    def __init__(self, control: Mapping[str, int]) -> None:
        self._control = control
        self.rules: list[str] = []
        """Rules that the nodes written so far refer to."""

    def marker(self, text: str) -> str:
        return f"<[{self._control[text]}]>" if text in self._control else json.dumps(text)

    def is_control(self, text: str) -> bool:
        return text in self._control

    def text_until(self, rule: str, marker: str) -> str:
        """Return a rule for any text up to and including the marker. The grammar must define TEXT."""
        lazy = "" if self.is_control(marker) else "[lazy]"
        return f"{rule}{lazy}: TEXT {self.marker(marker)}"

    def arguments(self, tool: Tool) -> str:
        """Return the arguments of `tool` as a grammar node."""
        is_empty = not tool.parameters or tool.parameters.get("properties") == {}
        return self.value(tool, {"type": "object", **({"additionalProperties": False} if is_empty else {}), **tool.enforced})

    def text_of(self, tool: Tool, marker: str, default: str) -> str:
        """Return the bare text of a custom tool with a grammar, up to and including the marker; `default` for other tools."""
        if tool.pattern is None:
            return default
        number, pattern = len(self.rules), tool.pattern.replace("/", "\\/")
        self.rules += [
            f"FREE_{number}: /(?:{pattern})/",
            self.text_until(f"free_{number}", marker).replace("TEXT", f"FREE_{number}"),
        ]
        return f"free_{number}"

    def value(self, tool: Tool, schema: Mapping[str, Any]) -> str:
        """Return a value of `schema`, a part of the tool's schema, as a grammar node."""
        return f"%json {json.dumps(schema if tool.strict else closed(relaxed(schema)))}"


class ToolFormat(abc.ABC):
    """A family's format of tool calls.

    `begin` opens the first call; anything before it is the answer's text. `controls` are texts of the format that may be
    control tokens and that the parser needs. A `whole` format marks reasoning and text too: it parses every answer of its
    models, its grammar covers all of it, and `lead` is its marker ahead of text. `example` is a call for `instructions`.
    """

    name: ClassVar[str]
    begin: ClassVar[str]
    example: ClassVar[str]
    controls: ClassVar[tuple[str, ...]] = ()
    whole: ClassVar[bool] = False
    lead: ClassVar[str] = ""

    @abc.abstractmethod
    def matches(self, template: str) -> bool:
        """Return whether a model with this chat template uses the format."""

    @abc.abstractmethod
    def parser(self, tools: Sequence[Tool], new_id: NewId = call_id) -> Parser:
        """Return a new parser of an answer that may call `tools`."""

    @abc.abstractmethod
    def call(self, tool: Tool, lark: Lark) -> str:
        """Return the grammar of one call, without `begin`, `between` and `end`."""

    def instructions(self, tools: Sequence[Tool]) -> str:
        """Return a system message that lists the tools and explains how to call one, for templates that do not."""
        listed = "\n".join(
            json.dumps({"name": tool.name, "description": tool.description, "parameters": tool.parameters}, ensure_ascii=False)
            for tool in tools
        )
        return (
            f"You can call these tools, one JSON object a line:\n{listed}\n\n"
            f"To call a tool, answer with nothing but\n{self.example}\n"
            "and wait for its result. Call a tool only when it helps; otherwise answer in plain words."
        )

    def rules(self, lark: Lark) -> Sequence[str]:
        """Return rules that `call` refers to."""
        return ()

    def opening(self, lark: Lark) -> str:
        """Return the grammar between `begin` and the first call."""
        return ""

    def between(self, lark: Lark) -> str:
        """Return the grammar between two calls; empty for a format with one call only."""
        return lark.marker(self.begin)

    def end(self, lark: Lark) -> str:
        """Return the grammar after the last call."""
        return ""

    def grammar(self, tools: Sequence[Tool], choice: ToolChoice, lark: Lark, text: str | None = None) -> str:
        """Return Lark rules of which `answer` covers an answer that calls as `choice` requires.

        `text` is the grammar of an answer without calls; None allows any text, and then before calls too.
        """
        rules = [self.calls(tools, choice, lark)]
        begin = lark.marker(self.begin)
        if choice.mode == "required":
            rules.append(f"answer: {begin} calls")
        elif text is not None:
            rules.append(f"answer: {text} | {begin} calls")
        else:
            rules += [TEXT, lark.text_until("lead", self.begin), "answer: TEXT | lead calls"]
        return "\n".join(rules)

    def calls(self, tools: Sequence[Tool], choice: ToolChoice, lark: Lark) -> str:
        """Return Lark rules of which `calls` covers one or more calls, without `begin`."""
        usable = [tool for tool in tools if not choice.names or tool.name in choice.names]
        each = [f"call_{index}: {self.call(tool, lark)}" for index, tool in enumerate(usable)]
        any_call = " | ".join(f"call_{index}" for index in range(len(usable)))
        between = self.between(lark)
        more = f"({between} call){{0,{MOST_CALLS - 1}}}" if between and choice.parallel else ""
        frame = f"calls: {self.opening(lark)} call {more} {self.end(lark)}"
        return "\n".join([*self.rules(lark), *lark.rules, *each, f"call: {any_call}", frame])
