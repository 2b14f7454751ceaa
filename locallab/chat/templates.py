"""Chat templates of models: Jinja in a sandbox, with the functions that model authors rely on."""

from __future__ import annotations

import contextlib
import datetime
import functools
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from locallab.chat.messages import (
    REASONING_KEYS,
    Message,
    ToolCall,
    arguments,
    ended_by_user,
    folded,
    merged,
    short_ids,
    without_reasoning,
    without_system,
    written_out,
)
from locallab.errors import InvalidField, ModelError

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The template of a model without one."""

PROBE = "locallab_probe"
"""A tool name that occurs in no conversation."""


SHAPES: Sequence[Callable[[Sequence[Message]], Sequence[Message]]] = (
    list,
    without_reasoning,
    merged,
    short_ids,
    folded,
    without_system,
    ended_by_user,
)
"""Reshapings of a conversation, the least first: some templates refuse what clients may send."""


class _Generation(Extension):
    """Ignore `{% generation %}` tags, which mark the assistant's tokens for training."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own interface)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Format as JSON without Jinja's HTML escapes, which models have not seen in training."""

    def as_list(value: Any) -> list[Any]:  # such as the generator that Jinja's `map` returns
        if isinstance(value, Iterable):
            return list(value)
        raise TypeError(f"{type(value).__name__} cannot be written as JSON")

    form: dict[str, Any] = {"indent": indent, "separators": separators, "sort_keys": sort_keys}
    return json.dumps(value, ensure_ascii=ensure_ascii, default=as_list, **form)


class _Environment(ImmutableSandboxedEnvironment):
    """A sandbox with the filters and functions that templates on Hugging Face use."""

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation], autoescape=False)
        self.filters["tojson"] = tojson
        self.globals["raise_exception"] = raise_exception
        self.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)


def _entry(message: Message) -> dict[str, Any]:
    calls = [_call(call, arguments(call)) for call in message.tool_calls]
    reasoning = dict.fromkeys(REASONING_KEYS, message.reasoning)
    optional = {"name": message.name, "tool_calls": calls, "tool_call_id": message.tool_call_id, **reasoning}
    return {"role": message.role, "content": message.content, **{key: value for key, value in optional.items() if value}}


def _text_entry(message: Message) -> dict[str, Any]:
    """Convert for templates that take calls as the OpenAI API has them: arguments as JSON text, null for empty content."""
    calls = [_call(call, call.arguments) for call in message.tool_calls]
    return {**_entry(message), **({"content": message.content or None, "tool_calls": calls} if calls else {})}


def _call(call: ToolCall, arguments: Any) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


class ChatTemplate:
    """Render conversations in the format a model was trained on.

    `source` None means ChatML. `bos` and `eos` are the texts of the model's tokens, for templates that write them.
    Raises ModelError if the source is not a valid template.
    """

    def __init__(self, source: str | None, bos: str = "", eos: str = "") -> None:
        self.source = text = source or CHATML
        try:
            self._template = _Environment().from_string(text, {"bos_token": bos, "eos_token": eos})
        except jinja2.TemplateSyntaxError as error:
            raise ModelError(f"the model's chat template cannot be used: line {error.lineno}: {error.message}") from None
        self._knows_calls = "tool_calls" in text
        self._checked = ("system",) if "tool" in text else ("system", "tool")

    @functools.cached_property
    def renders_tools(self) -> bool:
        """Return whether the template lists tools in the prompt: some only know how to write calls."""
        probe = {"name": PROBE, "description": "", "parameters": {"type": "object", "properties": {}}}
        try:
            return PROBE in self.render([Message("user", "")], tools=[{"type": "function", "function": probe}])
        except InvalidField:
            return False

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True, **kwargs: Any) -> str:
        """Return the conversation as text with markup, ready for the assistant's turn if `add_generation_prompt`.

        If the template refuses the messages, or drops a tool result or a system message (some read the first one only), they
        are rendered again in a stricter shape.
        Raises InvalidField with the template's own reason if it refuses every shape.
        """
        incomplete, reason = "", ""
        for shape in SHAPES:
            shaped = shape(messages)
            try:
                text = self._render([self._entry(message) for message in shaped], add_generation_prompt, kwargs)
            except Exception as error:  # templates are programs: they can raise anything
                reason = reason or str(error) or type(error).__name__
                continue
            if all(message.content.strip() in text for message in shaped if message.role in self._checked):
                return text
            incomplete = incomplete or text
        if incomplete:
            return incomplete
        raise InvalidField("messages", f"the model's chat template refuses them: {reason}")

    def _render(self, entries: Sequence[dict[str, Any]], add_generation_prompt: bool, more: dict[str, Any]) -> str:
        variables = {"messages": entries, "tools": None, "documents": None, **more}
        try:
            return self._template.render(variables, add_generation_prompt=add_generation_prompt)
        except TypeError:  # some templates iterate over `tools` without checking for None
            if variables["tools"] is not None:
                raise
            return self._template.render({**variables, "tools": []}, add_generation_prompt=add_generation_prompt)

    @functools.cached_property
    def _entry(self) -> Callable[[Message], dict[str, Any]]:
        """Return the converter of messages to the template's dicts: the first with which the template renders a call."""
        call = ToolCall("probe0000", PROBE, '{"a": 1}')
        talk = [Message("user", "a"), Message("assistant", "", tool_calls=(call,)), Message("tool", "b", "it", (), call.id)]
        for entry in (_entry, _text_entry):
            with contextlib.suppress(Exception):
                if PROBE in self._render([entry(message) for message in talk], True, {}):
                    return entry
        return _entry if self._knows_calls else lambda message: _entry(written_out(message))
