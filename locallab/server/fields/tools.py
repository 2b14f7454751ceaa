"""Tools and tool choice, in the forms that clients of several dialects send."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from locallab.chat.tools import Tool, ToolChoice
from locallab.chat.tools.format import qualified
from locallab.chat.tools.free_form import parameters as text_parameters
from locallab.chat.tools.free_form import pattern_of_lark
from locallab.errors import InvalidField

MODES = {"auto": "auto", "none": "none", "required": "required", "any": "required"}


LONGEST = 1 << 20
"""Bytes of all tools together."""
MOST_NAMED = 256
"""Entries of a choice, each of which is looked for among the tools."""

CUSTOM, NAMESPACE = "custom", "namespace"
"""Types of tools that only some dialects have."""


def read_tools(raw: object, notes: list[str], field: str = "tools", also: Collection[str] = ()) -> tuple[Tool, ...]:
    """Read a client's functions: `{"type": "function", "function": {...}}`, or the function itself as in the shapes of
    Responses (`parameters`) and Anthropic (`input_schema`).

    `also` are further types that the dialect has: CUSTOM for tools whose input is a text, NAMESPACE for lists of functions.
    Tools of another type, which a client's own service would run, are left out and listed in `notes`. Raises InvalidField.
    """
    if raw is None:
        return ()
    if not isinstance(raw, list):
        raise InvalidField(field, "expected a list")
    if len(msgspec.json.encode(raw)) > LONGEST:
        raise InvalidField(field, f"must have at most {LONGEST >> 20} MiB in all")
    tools: dict[str, Tool] = {}
    for index, entry in enumerate(raw):
        for tool in _tools(f"{field}[{index}]", entry, notes, also):
            if tool.name in tools:
                raise InvalidField(f"{tool.field}.name", f"{tool.name!r} is there twice")
            tools[tool.name] = tool
    return tuple(tools.values())


def read_choice(raw: object, parallel: bool | None, tools: Sequence[Tool], field: str = "tool_choice") -> ToolChoice:
    """Read a tool choice in OpenAI's, Responses' or Anthropic's shape. Raises InvalidField for one that cannot be met."""
    at_once = parallel is not False
    if raw is None:
        return ToolChoice(parallel=at_once)
    if isinstance(raw, str):
        return _mode(raw, (), at_once, tools, field)
    if not isinstance(raw, Mapping):
        raise InvalidField(field, "expected auto, none, required or an object that names a function")
    at_once = at_once and not raw.get("disable_parallel_tool_use")
    kind = raw.get("type")
    if kind in MODES:
        return _mode(str(kind), (), at_once, tools, field)
    if kind == "allowed_tools":
        inner = raw.get("allowed_tools") if isinstance(raw.get("allowed_tools"), Mapping) else raw
        assert isinstance(inner, Mapping)
        listed = inner.get("tools") or ()
        if not isinstance(listed, list | tuple) or len(listed) > MOST_NAMED:
            raise InvalidField(f"{field}.tools", f"expected a list of at most {MOST_NAMED} tools")
        names = tuple(name for entry in listed for name in _names(f"{field}.tools", entry, tools))
        return _mode(str(inner.get("mode") or "auto"), names, at_once, tools, field)
    return _mode("required", _names(field, raw, tools), False, tools, field)


def _mode(mode: str, names: tuple[str, ...], parallel: bool, tools: Sequence[Tool], field: str) -> ToolChoice:
    if mode not in MODES:
        raise InvalidField(field, f"unknown choice {mode!r}; known: {', '.join(MODES)}, or an object that names a function")
    known = dict.fromkeys(tool.name for tool in tools)
    missing = [name for name in names if name not in known]
    if missing:
        raise InvalidField(field, f"names {missing[0]!r}, which is not among the tools ({', '.join(known) or 'none given'})")
    if MODES[mode] == "required" and not tools:
        raise InvalidField(field, "asks for a call, but there are no tools to call")
    return ToolChoice(MODES[mode], names, parallel)  # type: ignore[arg-type]


def _names(field: str, raw: object, tools: Sequence[Tool]) -> tuple[str, ...]:
    """Return the names of the tools that an entry of a choice means: one, or all of a namespace."""
    if isinstance(raw, Mapping):
        nested = next((raw[key] for key in ("function", "custom") if isinstance(raw.get(key), Mapping)), raw)
        name, namespace = nested.get("name"), nested.get("namespace")
        if raw.get("type") == NAMESPACE:
            found = tuple(tool.name for tool in tools if tool.namespace == name)
            return found or (str(name),)
        if isinstance(name, str) and name:
            if isinstance(namespace, str):
                return (qualified(namespace, name),)
            own = [tool.name for tool in tools if tool.own_name == name]
            return (name,) if len(own) != 1 else (own[0],)
    raise InvalidField(
        field, 'expected an object that names a function, such as {"type": "function", "function": {"name": ...}}'
    )


def _tools(field: str, raw: object, notes: list[str], also: Collection[str]) -> Iterator[Tool]:
    """Yield the tool of an entry, or those of a namespace."""
    if not isinstance(raw, Mapping):
        raise InvalidField(field, "expected an object")
    kind = raw.get("type") or ("function" if "function" in raw or "name" in raw else None)
    if kind == NAMESPACE and NAMESPACE in also:
        name, inner = raw.get("name"), raw.get("tools")
        if not isinstance(name, str) or not name:
            raise InvalidField(f"{field}.name", "is missing")
        if not isinstance(inner, list):
            raise InvalidField(f"{field}.tools", "expected a list")
        about = raw["description"] if isinstance(raw.get("description"), str) else ""
        for index, entry in enumerate(inner):
            for tool in _tools(f"{field}.tools[{index}]", entry, notes, (CUSTOM,)):
                text = "\n".join(filter(None, [tool.description, about]))
                yield dataclasses.replace(tool, name=qualified(name, tool.name), description=text, namespace=name)
    elif kind == CUSTOM and "input_schema" not in raw and CUSTOM in also:
        yield _custom(field, raw)
    elif kind in ("function", None) or (kind == CUSTOM and "input_schema" in raw):
        yield _function(field, raw)
    else:
        notes.append(f"{field}: a tool of type {kind!r} is left out")


def _custom(field: str, raw: Mapping[str, Any]) -> Tool:
    """Read a tool whose input is a text. Raises InvalidField for a grammar that cannot be enforced."""
    nested = raw.get(CUSTOM)
    tool = nested if isinstance(nested, Mapping) else raw
    field = f"{field}.{CUSTOM}" if tool is nested else field
    name, description = _named(field, tool)
    form = tool.get("format") or {"type": "text"}
    if not isinstance(form, Mapping) or form.get("type") not in ("text", "grammar"):
        raise InvalidField(f"{field}.format", "expected an object of type text or grammar")
    if form["type"] == "text":
        return Tool(name, description, text_parameters(), field=field, custom=True)
    inner = form["grammar"] if isinstance(form.get("grammar"), Mapping) else form
    syntax, definition = inner.get("syntax"), inner.get("definition")
    if syntax not in ("lark", "regex"):
        raise InvalidField(f"{field}.format.syntax", f"unknown syntax {syntax!r}; known: lark, regex")
    if not isinstance(definition, str) or not definition.strip():
        raise InvalidField(f"{field}.format.definition", "is missing")
    try:
        pattern = pattern_of_lark(definition) if syntax == "lark" else definition
    except ValueError as error:
        raise InvalidField(f"{field}.format.definition", str(error)) from None
    shown = text_parameters(syntax, definition)
    return Tool(name, description, shown, strict=True, field=field, custom=True, pattern=pattern)


def _named(field: str, tool: Mapping[str, Any]) -> tuple[str, str]:
    name, description = tool.get("name"), tool.get("description")
    if not isinstance(name, str) or not name:
        raise InvalidField(f"{field}.name", "is missing")
    if description is not None and not isinstance(description, str):
        raise InvalidField(f"{field}.description", "expected a string")
    return name, description or ""


def _function(field: str, raw: Mapping[str, Any]) -> Tool:
    nested = raw.get("function")
    function = nested if isinstance(nested, Mapping) else raw
    field = f"{field}.function" if function is nested else field
    name, description = _named(field, function)
    key = "input_schema" if "input_schema" in function else "parameters"
    parameters = function.get(key)
    if parameters is not None and not isinstance(parameters, Mapping):
        raise InvalidField(f"{field}.{key}", "expected a JSON schema of an object")
    return Tool(name, description, parameters or {}, function.get("strict") is True, field)
