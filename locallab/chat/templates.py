"""Chat templates of models: which of a file's templates a request takes, and the shape in which each reads messages."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2
from jinja2 import meta

from locallab.chat.budget import NORMAL, Exceeded, Limits, allotted
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
from locallab.chat.sandbox import Sandbox
from locallab.errors import InvalidField, ModelError, NoChatTemplate, TemplateExceeded

PROBE = "locallab_probe"
"""A text that occurs in no conversation."""

LONGEST = 65_536
"""Characters of the longest source that is compiled: a quarter of a second, in which no other Python runs."""

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

COMPILING = Limits(seconds=2.0, steps=100_000, size=1 << 20)
"""What constant expressions may take while a template is compiled."""

FOR_TOOLS, FOR_DOCUMENTS = "tool_use", "rag"
"""Names of templates in a file besides the default one."""


def _entry(message: Message) -> dict[str, Any]:
    calls = [_call(call, arguments(call)) for call in message.tool_calls]
    reasoning = dict.fromkeys(REASONING_KEYS, message.reasoning)
    optional = {"name": message.name, "tool_calls": calls, "tool_call_id": message.tool_call_id, **reasoning}
    return {"role": message.role, "content": message.content, **{key: value for key, value in optional.items() if value}}


def _text_entry(message: Message) -> dict[str, Any]:
    """Convert for templates that take calls as the OpenAI API has them: arguments as JSON text, null for empty content."""
    calls = [_call(call, call.arguments) for call in message.tool_calls]
    return {**_entry(message), **({"content": message.content or None, "tool_calls": calls} if calls else {})}


def _callless_entry(message: Message) -> dict[str, Any]:
    return _entry(written_out(message))


def _call(call: ToolCall, arguments: Any) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


@dataclasses.dataclass(frozen=True, slots=True)
class _Shape:
    """How a template reads messages: `entry` converts them, and the content of the roles `parted` is a list of parts."""

    entry: Callable[[Message], dict[str, Any]] = _entry
    parted: frozenset[str] = frozenset()

    def __call__(self, message: Message) -> dict[str, Any]:
        entry = self.entry(message)
        if message.role in self.parted and entry["content"] is not None:
            entry["content"] = [{"type": "text", "text": entry["content"]}]
        return entry


@functools.cache
def _sandbox() -> Sandbox:
    return Sandbox()


def _compiled(name: str, source: str, tokens: dict[str, Any]) -> jinja2.Template:
    if len(source) > LONGEST:
        raise ModelError(f"{name} cannot be used: it has {len(source):,} characters; at most {LONGEST:,} are compiled")
    try:
        with allotted(COMPILING):
            return _sandbox().from_string(source, tokens)
    except jinja2.TemplateSyntaxError as error:
        raise ModelError(f"{name} cannot be used: line {error.lineno}: {error.message}") from None
    except Exception as error:  # such as RecursionError, MemoryError or SyntaxError of Python's own compiler
        raise ModelError(f"{name} cannot be used: it is nested too deeply ({type(error).__name__})") from None


class ChatTemplate:
    """Render conversations in the format a model was trained on.

    `source` None means that the model has none: it renders nothing. `bos` and `eos` are the texts of the model's tokens, for
    templates that write them. `named` are the sources of others in the same file, by name. `name` is for messages. `for_tools`
    says that the template is made for requests with tools.
    Raises ModelError if a source is not a valid template.
    """

    def __init__(
        self,
        source: str | None,
        bos: str = "",
        eos: str = "",
        *,
        named: Mapping[str, str] | None = None,
        name: str = "the model's chat template",
        for_tools: bool = False,
    ) -> None:
        self.name, self.for_tools = name, for_tools
        self._named = {
            key: ChatTemplate(text, bos, eos, name=f"{name} {key!r}", for_tools=key == FOR_TOOLS)
            for key, text in (named or {}).items()
            if key in (FOR_TOOLS, FOR_DOCUMENTS)
        }
        if not source and self._named:
            source = next(iter(self._named.values())).source
        self.source: str = source or ""
        self._template = _compiled(name, source, {"bos_token": bos, "eos_token": eos}) if source else None
        self._knows_calls = "tool_calls" in self.source
        self._checked = ("system",) if "tool" in self.source else ("system", "tool")
        self._endless: TemplateExceeded | None = None

    def suited(self, *, tools: bool, documents: bool) -> ChatTemplate:
        """Return the template for a request with tools, or with documents: the one that the file names so, else this one."""
        wanted = FOR_TOOLS if tools else FOR_DOCUMENTS if documents else None
        return self if wanted is None else self._named.get(wanted, self)

    def examine(self) -> TemplateExceeded | None:
        """Find out how the template and its named ones read messages, within the budget of one rendering.

        One that does not end in time refuses every request from then on; its error is returned. Blocks for up to seconds.
        """
        for template in (self, *self._named.values()):
            try:
                with allotted(NORMAL):
                    _ = template._template and (template._shape, template.renders_tools)
            except (Exceeded, TemplateExceeded) as error:
                template._endless = TemplateExceeded(template.name, getattr(error, "limit", str(error)))
        return next((each._endless for each in (self, *self._named.values()) if each._endless), None)

    @functools.cached_property
    def renders_tools(self) -> bool:
        """Return whether the template lists tools in the prompt: some only know how to write calls."""
        probe = {"name": PROBE, "description": "", "parameters": {"type": "object", "properties": {}}}
        try:
            return PROBE in self.render([Message("user", "")], {"tools": [{"type": "function", "function": probe}]})
        except (TemplateExceeded, NoChatTemplate):
            raise
        except InvalidField:
            return False

    def render(
        self,
        messages: Sequence[Message],
        variables: Mapping[str, Any] | None = None,
        *,
        add_generation_prompt: bool = True,
    ) -> str:
        """Return the conversation as text with markup, ready for the assistant's turn if `add_generation_prompt`.

        If the template refuses the messages, or drops a tool result or a system message (some read the first one only), they
        are rendered again in a stricter shape.
        Raises InvalidField with the template's own reason if it refuses every shape, TemplateExceeded if it takes longer than
        the budget that is in force, or one that grows with the conversation; NoChatTemplate.
        """
        if self._template is None:
            raise NoChatTemplate
        if self._endless is not None:
            raise self._endless
        if "messages" in (variables or {}):
            raise InvalidField("chat_template_kwargs", "must not hold 'messages': they are a field of their own")
        given = {"add_generation_prompt": add_generation_prompt, **(variables or {})}
        length = sum(len(message.content) + len(message.reasoning) for message in messages)
        try:
            with allotted(NORMAL.grown(len(messages), length), anew=False):
                return self._rendered(messages, given)
        except Exceeded as error:
            raise TemplateExceeded(self.name, str(error)) from None

    def _rendered(self, messages: Sequence[Message], variables: Mapping[str, Any]) -> str:
        incomplete, reason = "", ""
        for shape in SHAPES:
            shaped = shape(messages)
            try:
                text = self._filled([self._shape(message) for message in shaped], variables)
            except (Exceeded, TemplateExceeded):
                raise
            except Exception as error:  # templates are programs: they can raise anything
                reason = reason or str(error)[:500] or type(error).__name__
                continue
            if all(message.content.strip() in text for message in shaped if message.role in self._checked):
                return text
            incomplete = incomplete or text
        if incomplete:
            return incomplete
        raise InvalidField("messages", f"{self.name} refuses them: {reason}")

    def _filled(self, entries: Sequence[dict[str, Any]], more: Mapping[str, Any]) -> str:
        variables = {"tools": None, "documents": None, "enable_thinking": True, **_dates(), **more, "messages": entries}
        if self._takes_functions and "functions" not in more:
            variables["functions"] = json.dumps(variables["tools"], indent=2, ensure_ascii=False) if variables["tools"] else ""
        try:
            return self._run(variables)
        except TypeError:  # some templates iterate over `tools` without checking for None
            if variables["tools"] is not None:
                raise
            return self._run({**variables, "tools": []})

    def _run(self, variables: dict[str, Any]) -> str:
        assert self._template is not None
        return _sandbox().concat(self._template.root_render_func(self._template.new_context(variables)))

    @functools.cached_property
    def _takes_functions(self) -> bool:
        """Return whether tools are passed as JSON text under another name, as Firefunction has them."""
        return "functions" in self.source and "functions" in meta.find_undeclared_variables(_sandbox().parse(self.source))

    @functools.cached_property
    def _shape(self) -> _Shape:
        """Return the first shape in which the template renders what each role says, and calls."""
        shape = _Shape()
        user, answer = Message("user", "a"), Message("assistant", "b")
        for role, before, after in (("user", [], []), ("system", [], [user]), ("assistant", [user], [user])):
            shape = self._parting(shape, role, [*before, Message(role, PROBE), *after])
        call = ToolCall("probe0000", PROBE, '{"a": 1}')
        called = Message("assistant", "", tool_calls=(call,))
        talk = [user, called, Message("tool", "c", "it", (), call.id)]
        for entry in (_entry, _text_entry):
            tried = dataclasses.replace(shape, entry=entry)
            if self._renders(tried, talk):
                said = [user, dataclasses.replace(called, tool_calls=(dataclasses.replace(call, name="it"),))]
                return self._parting(tried, "tool", [*said, Message("tool", PROBE, "it", (), call.id), answer, user])
        return shape if self._knows_calls else dataclasses.replace(shape, entry=_callless_entry)

    def _parting(self, shape: _Shape, role: str, talk: Sequence[Message]) -> _Shape:
        """Return the shape with content in parts for the role if that is what it takes for PROBE to be rendered."""
        parted = dataclasses.replace(shape, parted=shape.parted | {role})
        return parted if not self._renders(shape, talk) and self._renders(parted, talk) else shape

    def _renders(self, shape: _Shape, talk: Sequence[Message]) -> bool:
        try:
            return PROBE in self._filled([shape(message) for message in talk], {"add_generation_prompt": True})
        except Exceeded:
            raise
        except Exception:
            return False


def _dates() -> dict[str, str]:
    """Return the day under the names and in the forms that templates expect. No time: it would be a new prompt each second."""
    now = datetime.datetime.now()
    return {
        "date_string": f"{now:%d %b %Y}",
        "datetime": f"{now:%b %d %Y}",
        "today": f"{now:%Y-%m-%d}",
    }
