"""The Jinja environment of chat templates: sandboxed, with what model authors rely on, and every step within a budget."""

from __future__ import annotations

import datetime
import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import BuiltinMethodType, MethodType
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame, operators, optimizeconst
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, missing

from locallab.chat.budget import BITS, OBJECT, current


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


WIDEST = 10_000
"""The largest number that a filter takes: a width, a count of columns, digits."""

WIDE, SPLITS = _words("center ljust rjust zfill"), _words("split rsplit splitlines")
TEXT_METHODS = (
    WIDE
    | SPLITS
    | _words(
        "capitalize casefold count endswith find index isalnum isalpha isascii isdecimal isdigit isidentifier islower "
        "isnumeric isprintable isspace istitle isupper join lower lstrip partition removeprefix removesuffix replace rfind "
        "rindex rpartition rstrip startswith strip swapcase title upper"
    )
)
OTHER_METHODS = {
    dict: frozenset({"copy", "get", "items", "keys", "values"}),
    list: frozenset({"copy", "count", "index"}),
    tuple: frozenset({"count", "index"}),
    float: frozenset({"is_integer"}),
    int: frozenset({"bit_length"}),
}
"""Methods written in C that templates may call: those whose time and result are bounded by the size of what they are given."""

DICT_ATTRIBUTES = frozenset(dir(dict))

ITERATING = _words(
    "batch dictsort items join list map max min reject rejectattr reverse select selectattr slice sort sum unique"
)
COMPARING = _words("dictsort max min sort unique")
WRITING = _words(
    "capitalize center e escape forceescape indent lower replace string title trim truncate upper urlencode wordcount"
)
NUMERIC = _words("batch center indent round slice truncate")
OTHER_FILTERS = _words("abs attr count d default first float int last length round safe")
COMPARISONS = _words("== eq equalto != ne > gt greaterthan >= ge < lt lessthan <= le in lower upper")
WIDTHS = re.compile(r"\d{5}|\*|\{[^{}]*\{")
"""Widths of more than four digits, or taken from elsewhere, in a format."""


class _Generation(Extension):
    """Ignore `{% generation %}` tags, which mark the assistant's tokens for training."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own interface)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Metered(CodeGenerator):
    """Compile a template so that every block is a step, and whatever may become large goes through the environment."""

    def write_commons(self) -> None:
        super().write_commons()
        self.writeline("budget = environment.budget()")
        for name in ("step", "add", "joined", "charged", "weighed", "written"):
            self.writeline(f"{name} = budget.{name}")

    def _make_finalize(self) -> Any:
        return self._FinalizeInfo(self._default_finalize, "written(")

    def blockvisit(self, children: Iterable[nodes.Node], frame: Frame) -> None:
        self.writeline("step()")
        super().blockvisit(children, frame)

    @optimizeconst
    def visit_Add(self, node: nodes.BinExpr, frame: Frame) -> None:
        self._through("add", frame, node.left, node.right)

    @optimizeconst
    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self._through("joined", frame, *node.nodes)

    def _through(self, name: str, frame: Frame, *operands: nodes.Expr) -> None:
        self.write(f"{name}(")
        for operand in operands:
            self.visit(operand, frame)
            self.write(", ")
        self.write(")")

    @optimizeconst
    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:
        compared = [node.expr, *(op.expr for op in node.ops)]
        searches = any(op.op in ("in", "notin") for op in node.ops)
        constant = any(isinstance(each, nodes.Const) for each in compared)
        simple = len(compared) == 2 and constant and not searches  # over at the first look
        for operand, sign in zip(compared, ["(", *(f" {operators[op.op]} " for op in node.ops)], strict=True):
            self.write(sign)
            if simple:
                self.visit(operand, frame)
            else:
                self._through("weighed", frame, operand)
        self.write(")")

    def visit_List(self, node: nodes.List, frame: Frame) -> None:
        self._charged(super().visit_List, node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        self.write("charged({")
        for pair in node.items:
            self._through("weighed", frame, pair.key)
            self.write(": ")
            self.visit(pair.value, frame)
            self.write(", ")
        self.write("})")

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:
        if node.ctx == "load":
            self._charged(super().visit_Tuple, node, frame)
        else:
            super().visit_Tuple(node, frame)

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:
        if isinstance(node.arg, nodes.Slice):
            self._charged(super().visit_Getitem, node, frame)
        elif isinstance(node.arg, nodes.Const):
            super().visit_Getitem(node, frame)
        else:
            self.write("environment.getitem(")
            self.visit(node.node, frame)
            self.write(", ")
            self._through("weighed", frame, node.arg)
            self.write(")")

    def _charged(self, visit: Callable[[Any, Frame], None], node: nodes.Expr, frame: Frame) -> None:
        self.write("charged(")
        visit(node, frame)
        self.write(")")


class Sandbox(ImmutableSandboxedEnvironment):
    """A sandbox with the filters and functions that templates on Hugging Face use.

    Templates compile and run within the current budget: Exceeded ends them.
    """

    code_generator_class = _Metered
    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "**", "%"})

    def __init__(self) -> None:
        extensions = [loopcontrols, _Generation]
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
        known = ITERATING | WRITING | OTHER_FILTERS
        self.filters = {name: _metered(name, filter_) for name, filter_ in self.filters.items() if name in known}
        self.filters |= {"tojson": tojson, "format": _format}
        self.tests |= {name: _weighing(self.tests[name]) for name in COMPARISONS}
        del self.globals["lipsum"]
        self.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now}

    budget = staticmethod(current)

    def concat(self, pieces: Iterable[str]) -> str:
        return current().concat(pieces)

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Return what the base class does, without its detours for what templates look up most."""
        if type(obj) is dict and attribute not in DICT_ATTRIBUTES:
            return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
        if type(obj) in (LoopContext, Namespace) and not attribute.startswith("_"):
            value = getattr(obj, attribute, missing)
            return self.undefined(obj=obj, name=attribute) if value is missing else value
        return super().getattr(obj, attribute)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "-" and type(left) is type(right) is int:
            return left - right
        if operator == "%" and isinstance(left, str):
            _check_format(left, [right])
        elif operator == "-":
            current().weighed(left)
            current().weighed(right)
        elif operator == "*":
            _check_product(left, right)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int) and left.bit_length() * abs(right) > BITS:
            raise ValueError(f"a number of more than {BITS:,} bits")
        return current().charged(super().call_binop(context, operator, left, right))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def checked(*args: Any, **kwargs: Any) -> str:
            _check_format(value.__self__, [*args, *kwargs.values()])
            return str(current().charged(wrapped(*args, **kwargs)))

        return checked

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        if type(__obj) is Macro:
            return __context.call(__obj, *args, **kwargs)
        budget = current()
        for value in args:
            budget.weighed(value)
        if type(__obj) in (BuiltinMethodType, MethodType):
            args = _checked(__obj, args)
        return budget.charged(super().call(__context, __obj, *args, **kwargs))


def _checked(method: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the arguments for a method, if templates may call it and its result has room. Raises SecurityError, Exceeded."""
    owner, name, budget = method.__self__, method.__name__, current()
    budget.weighed(owner)
    if not isinstance(owner, str):
        allowed = OTHER_METHODS.get(type(owner))
        if isinstance(method, BuiltinMethodType) and (allowed is None or name not in allowed):
            raise SecurityError(f"chat templates cannot call {type(owner).__name__}.{name}")
        return args
    if name not in TEXT_METHODS:
        raise SecurityError(f"chat templates cannot call str.{name}")
    if name == "join" and args:
        items = list(budget.counted(args[0]))
        budget.take(len(owner) * len(items) + sum(map(budget.weigh, items)))
        return (items, *args[1:])
    if name == "replace" and len(args) > 1:
        _check_replaced(owner, *args[:2])
    elif name in WIDE:
        budget.check(next((width for width in args if isinstance(width, int)), 0))
    elif name in SPLITS:
        parts = owner.count(args[0]) if args and isinstance(args[0], str) and args[0] else len(owner) // 2
        budget.check(OBJECT * min(parts, *(most for most in args[1:] if isinstance(most, int) and most >= 0), parts))
    return args


def _check_replaced(text: str, old: Any, new: Any) -> None:
    if isinstance(old, str) and isinstance(new, str) and len(new) > len(old):
        current().check(len(text) + text.count(old) * (len(new) - len(old)))


def _check_product(left: Any, right: Any) -> None:
    for many, times in ((left, right), (right, left)):
        if isinstance(many, str | list | tuple) and isinstance(times, int):
            current().check((1 if isinstance(many, str) else 8) * len(many) * times)


def _check_format(form: str, values: Sequence[Any]) -> None:
    """Raise Exceeded if a formatted text may have no room, ValueError for widths that cannot be known or are large."""
    if WIDTHS.search(form):
        raise ValueError("a width that is not a number of up to four digits")
    fields = form.count("%") + form.count("{")
    current().check(len(form) + fields * (10_000 + sum(map(current().weigh, values))))


def _metered(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter that works within the budget."""
    before = int(hasattr(function, "jinja_pass_arg"))  # an argument ahead of the value

    @functools.wraps(function)
    def metered(*args: Any, **kwargs: Any) -> Any:
        budget, first, value = current(), args[:before], args[before]
        rest = args[before + 1 :]
        if name in NUMERIC:
            for number in (*rest, *kwargs.values()):
                if isinstance(number, int) and abs(number) > WIDEST:
                    raise ValueError(f"{name} takes numbers up to {WIDEST:,}, got {number}")
        if name in ITERATING:
            value = _iterated(name, value, [*rest, *kwargs.values()])
        elif name in WRITING:
            budget.weighed(value)
            budget.check(_written_size(name, value, [*rest, *kwargs.values()]))
        return budget.charged(function(*first, value, *rest, **kwargs))

    return metered


def _iterated(name: str, value: Any, others: Sequence[Any]) -> Any:
    """Return what a filter goes through: each item is a step."""
    budget = current()
    if name == "sum" and not all(each is None or isinstance(each, str | int | float) for each in others):
        raise TypeError("sum adds numbers")
    if name == "list":
        if isinstance(value, Sequence | Mapping):
            budget.check(OBJECT * len(value))
        return list(budget.counted(value))
    if name in COMPARING or name == "join":
        if not isinstance(value, Mapping):
            value = list(budget.counted(value))
        weight = budget.weigh(value)
        if name == "join":
            budget.check(weight + len(value) * sum(len(other) for other in others if isinstance(other, str)))
        return value
    if isinstance(value, str | Mapping | Sequence):
        budget.step(len(value))
        return value
    return value if isinstance(value, jinja2.Undefined) or not isinstance(value, Iterable) else budget.counted(value)


def _written_size(name: str, value: Any, others: Sequence[Any]) -> int:
    """Return about how many characters a filter makes at most."""
    weight = current().weigh(value)
    if name == "replace" and len(others) > 1:
        _check_replaced(str(value), *others[:2])
    if name == "indent":
        width = max([4, *(len(each) if isinstance(each, str) else int(each) for each in others)])
        return weight + (str(value).count("\n") + 1) * width
    return weight


def _weighing(test: Any) -> Callable[..., bool]:
    @functools.wraps(test)
    def weighing(*args: Any) -> bool:
        for value in args:
            current().weighed(value)
        return bool(test(*args))

    return weighing


def raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def strftime_now(form: str) -> str:
    """Return the local time in a format."""
    if len(form) > 200:
        raise ValueError("a format of more than 200 characters")
    return datetime.datetime.now().strftime(form)


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
            return list(budget.counted(value))
        raise TypeError(f"{type(value).__name__} cannot be written as JSON")

    budget = current()
    weight = budget.weigh(value)
    if indent is not None or separators is not None:
        wide = (indent or 0) * 20 + sum(map(len, separators or ()))
        budget.check(weight // OBJECT * wide)
    form: dict[str, Any] = {"indent": indent, "separators": separators, "sort_keys": sort_keys}
    text = json.dumps(value, ensure_ascii=ensure_ascii, default=as_list, **form)
    budget.take(OBJECT + len(text))
    return text


def _format(form: Any, *args: Any, **kwargs: Any) -> str:
    form = str(form)
    _check_format(form, [*args, *kwargs.values()])
    if args and kwargs:
        raise jinja2.TemplateError("format takes positional or keyword arguments, not both")
    return str(current().charged(form % (kwargs or args)))
