"""What a tool-call format is: how a family of models writes calls, how to read them, and the grammar that enforces them."""

from __future__ import annotations

import abc
import dataclasses
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

from locallab.chat.deltas import Parser
from locallab.chat.json_schema import closed, relaxed


@dataclasses.dataclass(frozen=True, slots=True)
class Tool:
    """A function the model may call. `parameters` is the JSON schema of its arguments, an object's; none: it takes none. With
    `strict` a schema that cannot be enforced in full is an error; otherwise as much of it is enforced as can be, and no
    properties are allowed beyond those it names. `field` names the tool in messages, such as `tools[0]`."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    strict: bool = False
    field: str = "tools"


@dataclasses.dataclass(frozen=True, slots=True)
class ToolChoice:
    """Whether the model calls: as it likes, never, or at least once; of `names` only; without `parallel` once at most."""

    mode: Literal["auto", "none", "required"] = "auto"
    names: tuple[str, ...] = ()
    parallel: bool = True


NewId = Callable[[], str]

NAME = "<name of the tool>"
ARGUMENTS = "{<arguments as JSON>}"
JSON_CALL = f'{{"name": "{NAME}", "arguments": {ARGUMENTS}}}'
"""What stands for a call's parts in examples."""

MOST_CALLS = 16
"""In one answer: small models repeat a call without end."""

TEXT = "TEXT: /(?s:.*)/"
"""The rule for any text."""


def call_id() -> str:
    return f"call_{secrets.token_hex(12)}"


class Lark:
    """Writes grammar text for llguidance. `control` are the model's control tokens by their text: a marker that is one has
    to be named by its id, for its text alone would never be generated."""

    def __init__(self, control: Mapping[str, int]) -> None:
        self._control = control

    def marker(self, text: str) -> str:
        return f"<[{self._control[text]}]>" if text in self._control else json.dumps(text)

    def is_control(self, text: str) -> bool:
        return text in self._control

    def text_until(self, rule: str, marker: str) -> str:
        """A rule for any text up to the marker and with it. The rule TEXT has to be there."""
        lazy = "" if self.is_control(marker) else "[lazy]"
        return f"{rule}{lazy}: TEXT {self.marker(marker)}"

    def arguments(self, tool: Tool) -> str:
        """The arguments of `tool` as a grammar node."""
        none = not tool.parameters or tool.parameters.get("properties") == {}
        return self.value(tool, {"type": "object", **({"additionalProperties": False} if none else {}), **tool.parameters})

    def value(self, tool: Tool, schema: Mapping[str, Any]) -> str:
        """A value of `schema`, which is a part of the tool's, as a grammar node."""
        return f"%json {json.dumps(schema if tool.strict else closed(relaxed(schema)))}"


class ToolFormat(abc.ABC):
    """One family's way to write tool calls. `begin` is the text that opens the first call: what is before it is the answer's
    text. `controls` are texts of the format that may be control tokens and that the parser has to see. A format that is
    `whole` marks reasoning and text too: it reads every answer of its models, and its grammar covers all of it. `lead` is
    what it writes ahead of a text. `example` is a call as a model is told to write it that is not told so by its template."""

    name: ClassVar[str]
    begin: ClassVar[str]
    example: ClassVar[str]
    controls: ClassVar[tuple[str, ...]] = ()
    whole: ClassVar[bool] = False
    lead: ClassVar[str] = ""

    @abc.abstractmethod
    def matches(self, template: str) -> bool:
        """Whether a model with this chat template writes its calls so."""

    @abc.abstractmethod
    def parser(self, tools: Sequence[Tool], new_id: NewId = call_id) -> Parser:
        """Reads an answer that may call `tools`."""

    @abc.abstractmethod
    def call(self, tool: Tool, lark: Lark) -> str:
        """One call as grammar, without `begin`, and without what stands between calls and after the last."""

    def instructions(self, tools: Sequence[Tool]) -> str:
        """A system message that lists the tools and says how to call one, where the model's template does not."""
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
        """Rules that `call` refers to."""
        return ()

    def opening(self, lark: Lark) -> str:
        """What stands between `begin` and the first call, as grammar."""
        return ""

    def between(self, lark: Lark) -> str:
        """What stands between two calls, as grammar; empty for a format that knows one call only."""
        return lark.marker(self.begin)

    def end(self, lark: Lark) -> str:
        """What stands after the last call, as grammar."""
        return ""

    def grammar(self, tools: Sequence[Tool], choice: ToolChoice, lark: Lark, text: str | None = None) -> str:
        """An answer that calls as `choice` says: Lark rules of which `answer` is the whole. `text` is the grammar of an answer
        without calls, None for any text, which may then also stand before calls."""
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
        """Lark rules of which `calls` is one call or several, without `begin`."""
        usable = [tool for tool in tools if not choice.names or tool.name in choice.names]
        each = [f"call_{index}: {self.call(tool, lark)}" for index, tool in enumerate(usable)]
        any_call = " | ".join(f"call_{index}" for index in range(len(usable)))
        between = self.between(lark)
        more = f"({between} call){{0,{MOST_CALLS - 1}}}" if between and choice.parallel else ""
        frame = f"calls: {self.opening(lark)} call {more} {self.end(lark)}"
        return "\n".join([*self.rules(lark), *each, f"call: {any_call}", frame])
