"""A model's own chat template: Jinja in a sandbox, with the functions that model authors rely on."""

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

from locallab.chat.messages import THOUGHTS, Message, ToolCall, arguments, folded, unthought, without_system, written_out
from locallab.errors import InvalidField, ModelError

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""For a model that carries no template."""

PROBE = "locallab_probe"
"""The name of a tool that no conversation speaks of."""


class ChatTemplate:
    """Renders conversations as one model was trained to read them.

    `source` None means ChatML. `bos` and `eos` are the texts of the model's own tokens, for templates that write them.
    Raises ModelError when the source is not a template.
    """

    def __init__(self, source: str | None, bos: str = "", eos: str = "") -> None:
        self.source = text = source or CHATML
        try:
            self._template = _environment().from_string(text, {"bos_token": bos, "eos_token": eos})
        except jinja2.TemplateSyntaxError as error:
            raise ModelError(f"the model's chat template cannot be used: line {error.lineno}: {error.message}") from None
        self._knows_calls = "tool_calls" in text
        self._checked = ("system",) if "tool" in text else ("system", "tool")

    @functools.cached_property
    def tells_tools(self) -> bool:
        """Whether it puts the tools it is given into the prompt: some only know how calls are written."""
        probe = {"name": PROBE, "description": "", "parameters": {"type": "object", "properties": {}}}
        try:
            return PROBE in self.render([Message("user", "")], tools=[{"type": "function", "function": probe}])
        except InvalidField:
            return False

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True, **kwargs: Any) -> str:
        """The conversation as text, markup included, ready for the assistant's turn if `add_generation_prompt`.

        A template that refuses the messages, or leaves out a system message (some take the first one only) or a tool result,
        gets them again in a stricter shape.
        Raises InvalidField with the template's own reason when it refuses every shape.
        """
        incomplete, reason = "", ""
        shapes: tuple[Callable[[Sequence[Message]], Sequence[Message]], ...] = (list, unthought, folded, without_system)
        for shape in shapes:
            shaped = shape(messages)
            try:
                text = self._render([self._entry(message) for message in shaped], add_generation_prompt, kwargs)
            except Exception as error:  # a template is its author's program: it can raise anything
                reason = reason or str(error) or type(error).__name__
                continue
            if self._holds(text, shaped):
                return text
            incomplete = incomplete or text
        if incomplete:
            return incomplete
        raise InvalidField("messages", f"the model's chat template refuses them: {reason}")

    def _holds(self, text: str, messages: Sequence[Message]) -> bool:
        return all(message.content.strip() in text for message in messages if message.role in self._checked)

    def _render(self, entries: Sequence[dict[str, Any]], add_generation_prompt: bool, more: dict[str, Any]) -> str:
        """Some templates go through `tools` without a look whether there are any."""
        known = {"messages": entries, "tools": None, "documents": None, **more}
        try:
            return self._template.render(known, add_generation_prompt=add_generation_prompt)
        except TypeError:
            if known["tools"] is not None:
                raise
            return self._template.render({**known, "tools": []}, add_generation_prompt=add_generation_prompt)

    @functools.cached_property
    def _entry(self) -> Callable[[Message], dict[str, Any]]:
        """How it takes a message: the first way in which it does not leave out a call."""
        call = ToolCall("probe0000", PROBE, '{"a": 1}')
        talk = [Message("user", "a"), Message("assistant", "", tool_calls=(call,)), Message("tool", "b", "it", (), call.id)]
        for entry in (_entry, _text_entry):
            with contextlib.suppress(Exception):
                if PROBE in self._render([entry(message) for message in talk], True, {}):
                    return entry
        return _entry if self._knows_calls else _plain_entry


def _entry(message: Message) -> dict[str, Any]:
    calls = [_call(call, arguments(call)) for call in message.tool_calls]
    thought = dict.fromkeys(THOUGHTS, message.reasoning)
    optional = {"name": message.name, "tool_calls": calls, "tool_call_id": message.tool_call_id, **thought}
    return {"role": message.role, "content": message.content, **{key: value for key, value in optional.items() if value}}


def _text_entry(message: Message) -> dict[str, Any]:
    """For templates that know calls as the API has them: arguments as JSON text, and no content beside them."""
    calls = [_call(call, call.arguments) for call in message.tool_calls]
    return {**_entry(message), **({"content": message.content or None, "tool_calls": calls} if calls else {})}


def _plain_entry(message: Message) -> dict[str, Any]:
    return _entry(written_out(message))


def _call(call: ToolCall, given: Any) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": given}}


class _Generation(Extension):
    """`{% generation %}` marks the assistant's tokens for training; what is inside is plain template."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own interface)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation], autoescape=False
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as models were trained on it: Jinja's own filter would escape it for HTML."""
    form: dict[str, Any] = {"indent": indent, "separators": separators, "sort_keys": sort_keys}
    return json.dumps(value, ensure_ascii=ensure_ascii, default=_listed, **form)


def _listed(value: Any) -> list[Any]:
    """What Jinja's own filters make of a list, such as `map`."""
    if isinstance(value, Iterable):
        return list(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
