"""Tools and tool choice, in the forms that clients of several dialects send."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from locallab.chat.tools import Tool, ToolChoice
from locallab.errors import InvalidField

MODES = {"auto": "auto", "none": "none", "required": "required", "any": "required"}


def read_tools(raw: object, notes: list[str], field: str = "tools") -> tuple[Tool, ...]:
    """Read a client's functions: `{"type": "function", "function": {...}}`, or the function itself as in the shapes of
    Responses (`parameters`) and Anthropic (`input_schema`).

    Tools of another type, which a client's own service would run, are left out and listed in `notes`. Raises InvalidField.
    """
    if raw is None:
        return ()
    if not isinstance(raw, list):
        raise InvalidField(field, "expected a list")
    found = [_tool(f"{field}[{index}]", entry, notes) for index, entry in enumerate(raw)]
    tools = tuple(tool for tool in found if tool is not None)
    names = [tool.name for tool in tools]
    twice = next((tool for index, tool in enumerate(tools) if tool.name in names[:index]), None)
    if twice is not None:
        raise InvalidField(f"{twice.field}.name", f"{twice.name!r} is there twice")
    return tools


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
        names = tuple(_name(f"{field}.tools", entry) for entry in inner.get("tools") or ())
        return _mode(str(inner.get("mode") or "auto"), names, at_once, tools, field)
    return _mode("required", (_name(field, raw),), False, tools, field)


def _mode(mode: str, names: tuple[str, ...], parallel: bool, tools: Sequence[Tool], field: str) -> ToolChoice:
    if mode not in MODES:
        raise InvalidField(field, f"unknown choice {mode!r}; known: {', '.join(MODES)}, or an object that names a function")
    known = [tool.name for tool in tools]
    missing = [name for name in names if name not in known]
    if missing:
        raise InvalidField(field, f"names {missing[0]!r}, which is not among the tools ({', '.join(known) or 'none given'})")
    if MODES[mode] == "required" and not tools:
        raise InvalidField(field, "asks for a call, but there are no tools to call")
    return ToolChoice(MODES[mode], names, parallel)  # type: ignore[arg-type]


def _name(field: str, raw: object) -> str:
    if isinstance(raw, Mapping):
        function = raw.get("function")
        name = function.get("name") if isinstance(function, Mapping) else raw.get("name")
        if isinstance(name, str) and name:
            return name
    raise InvalidField(
        field, 'expected an object that names a function, such as {"type": "function", "function": {"name": ...}}'
    )


def _tool(field: str, raw: object, notes: list[str]) -> Tool | None:
    if not isinstance(raw, Mapping):
        raise InvalidField(field, "expected an object")
    kind = raw.get("type") or ("function" if "function" in raw or "name" in raw else None)
    if kind not in ("function", "custom", None) or (kind == "custom" and "input_schema" not in raw):
        notes.append(f"{field}: a tool of type {kind!r} is left out")
        return None
    nested = raw.get("function")
    function = nested if isinstance(nested, Mapping) else raw
    field = f"{field}.function" if function is nested else field
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise InvalidField(f"{field}.name", "is missing")
    description = function.get("description")
    if description is not None and not isinstance(description, str):
        raise InvalidField(f"{field}.description", "expected a string")
    key = "input_schema" if "input_schema" in function else "parameters"
    parameters = function.get(key)
    if parameters is not None and not isinstance(parameters, Mapping):
        raise InvalidField(f"{field}.{key}", "expected a JSON schema of an object")
    return Tool(name, description or "", parameters or {}, function.get("strict") is True, field)
