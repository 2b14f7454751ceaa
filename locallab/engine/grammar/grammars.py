"""Grammars compiled by llguidance for the vocabulary of one model."""

from __future__ import annotations

import re
import string
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

from llguidance import LLMatcher, LLTokenizer

from locallab.engine import stacks
from locallab.engine.grammar import bounds, gbnf, json_schema
from locallab.engine.grammar.guide import Guide
from locallab.engine.llama import Model
from locallab.engine.request import Constraint
from locallab.errors import EngineClosed, InvalidField

CAPACITY = 64
"""Maximum number of compiled constraints kept."""
STACK = 256 << 20
"""Address space in bytes for the stack of the compiling thread."""
LONGEST_REASON = 400
"""Maximum characters of llguidance's message in an error."""

# The layout of Python's json, frequent in training data. A fixed layout forces most tokens between values, and white space
# cannot go on for ever. Names have one spelling only: one with \u escapes would pass for a name that the schema does not
# know. A schema's own "x-guidance" overrides the layout.
_LAYOUT = (
    r'{"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": ",'
    r' "json_allowed_escapes": "\"\\bfnrt", "json_allow_general_unicode_escapes": false}'
)
_STRICT = '{"lenient": false, "coerce_one_of": false}'

_PROBE = f"{string.printable}  é世😀"

_STRING = r'"(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*"'
_EMBEDDED = re.compile(r'"(?:\\.|[^"\\])*"?|//.*|#.*|/(?:\\.|[^/\\\n])*/?|(?P<json>%json\s*)\{')
_STRINGS = re.compile(rf"\s*\[\s*{_STRING}(?:\s*,\s*{_STRING})*\s*\]\s*")
_DISPLAY = re.compile(r"\n *[0-9]+ \| ")

_PLACE = re.compile(r"^at \S+ failed to compile JSON schema: ")
_REASONS = (
    (r"min/maxProperties", "minProperties or maxProperties: supported only where all of properties are required"),
    (r"circular references", "$ref: what leads back to itself must stand alone, without other keywords beside it"),
    (r"patternProperty regexes", json_schema.OVERLAP),
    (r"(?s:.*)Regex is empty", "pattern or format: together with the other keywords no text meets it"),
    (r"Failed to generate regex for", "minimum or maximum: it has too many digits"),
    (r"Resource '([^']*)' is not present", r"$ref or $schema: {} is not within the schema, and nothing is fetched"),
    (r"oneOf", "oneOf is supported only where a value shows at once which of the schemas is meant; anyOf always is"),
)
"""Beginnings of llguidance's messages and the plain words that replace them; {} is the group of the pattern."""

Guides = tuple[Guide, Guide]
"""Two guides at the start of an answer: one that does not force tokens, and one that does."""


class Grammars:
    """The compiled constraints of one model, with the least recently used evicted. Thread-safe.

    Compiling takes milliseconds; the very first constraint takes a quarter of a second more.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._guides: OrderedDict[Constraint, Guides] = OrderedDict()
        self._lock = threading.Lock()
        self._tokenizer: LLTokenizer | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._closed = False

    def compile(self, constraint: Constraint) -> None:
        """Compile a constraint, so that a later `guide` finds it.

        Raises InvalidField, with the constraint's own field, for one that cannot be enforced in full, and EngineClosed.
        """
        self._initial_guides(constraint)

    def guide(self, constraint: Constraint, *, forces: bool = True) -> Guide:
        """Return a guide at the start of an answer, which `forces` tokens or leaves all to masks. Raises as `compile` does."""
        return self._initial_guides(constraint)[forces].copy()

    def close(self) -> None:
        """Finish the running compilation and refuse further ones; to be called before the model is freed."""
        with self._lock:
            self._closed = True
        if self._thread is not None:
            self._thread.shutdown()

    def _initial_guides(self, constraint: Constraint) -> Guides:
        with self._lock:
            if self._closed:
                raise EngineClosed()
            if guides := self._find(constraint):
                return guides
            if self._thread is None:
                self._thread = stacks.executor(STACK, "grammars")  # llguidance recurses into rules, thousands deep
            compilation = self._thread.submit(self._find_or_compile, constraint)
        return compilation.result()

    def _find_or_compile(self, constraint: Constraint) -> Guides:
        """Run in the compiling thread, where concurrent requests for one constraint queue up and compile it once."""
        with self._lock:
            guides = self._find(constraint)
        if guides is None:
            guides = self._compile(constraint)
            with self._lock:
                self._guides[constraint] = guides
                while len(self._guides) > CAPACITY:
                    self._guides.popitem(last=False)
        return guides

    def _find(self, constraint: Constraint) -> Guides | None:
        guides = self._guides.get(constraint)
        if guides is not None:
            self._guides.move_to_end(constraint)
        return guides

    def _compile(self, constraint: Constraint) -> Guides:
        try:
            constraint.source.encode()
            grammar = to_llguidance(constraint)
        except UnicodeEncodeError:
            raise InvalidField(constraint.field, "has half of a surrogate pair, which is no character") from None
        except ValueError as error:
            raise InvalidField(constraint.field, str(error)) from None
        if self._tokenizer is None:
            try:
                self._tokenizer = _tokenizer(self._model)
            except ValueError as error:
                reason = f"cannot be enforced: the vocabulary of this model cannot be used: {str(error).splitlines()[0]}"
                raise InvalidField(constraint.field, reason) from None
        if self._tokenizer.decode_bytes(self._tokenizer.tokenize_str(_PROBE)) != _PROBE.encode():
            raise InvalidField(
                constraint.field, "cannot be enforced: the tokenizer of this model does not keep texts as they are"
            )
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=bounds.LIMITS)
        problems = [matcher.get_error()] if matcher.is_error() else matcher.get_grammar_warnings()
        if not problems:
            trial = matcher.deep_copy()  # some grammars fail only when they are first used
            trial.consume_tokens(trial.compute_ff_tokens())
            trial.compute_bitmask()
            problems = [trial.get_error()] if trial.is_error() else []
        if problems:
            raise InvalidField(constraint.field, _reason(constraint, problems[0]))
        return Guide(matcher.deep_copy(), constraint.field, forces=False), Guide(matcher, constraint.field)


def _tokenizer(model: Model) -> LLTokenizer:
    """Describe the model's vocabulary to llguidance.

    A control token stands for its name behind 0xFF, a byte that no text has: only a grammar that names it allows it.
    """
    tokens = [model.piece(t) or (b"\xff" + name if (name := model.markup(t)) else b"") for t in range(model.n_vocab)]
    vocabulary, tokenize = model.native_tokenizer
    return LLTokenizer.from_llamacpp(  # type: ignore[attr-defined, no-any-return]
        tokens=tokens, vocab_ptr=vocabulary, tokenize_fptr=tokenize, eos_token=sorted(model.end_tokens), slices=None
    )


def to_llguidance(constraint: Constraint) -> str:
    """Return llguidance's grammar for a constraint. Raises ValueError with the reason when there is none."""
    source = constraint.source
    bounds.check_length(source)
    match constraint.kind:
        case "json_object":
            return _schema('{"type": "object"}')
        case "json_schema":
            return _schema(source)
        case "regex":
            bounds.check_regex([source])
            return str(LLMatcher.grammar_from_regex(source))
        case "lark":
            return str(LLMatcher.grammar_from_lark(_with_layout(source)))
        case "gbnf":
            bounds.check_length(source, bounds.LONGEST_RULES)
            return str(LLMatcher.grammar_from_lark(_with_layout(gbnf.to_lark(source))))
        case "choice":
            if not _STRINGS.fullmatch(source):
                raise ValueError("must be a list of at least one string")
            # Lark writes strings as JSON does
            return str(LLMatcher.grammar_from_lark(f"start: {' | '.join(re.findall(_STRING, source))}"))


def _schema(source: str) -> str:
    text = "{}" if source.strip() == "true" else source
    if not text.lstrip().startswith("{"):
        raise ValueError("must be a JSON Schema: a JSON object")
    schema, _ = json_schema.parse(text, len(text) - len(text.lstrip()), whole=True)
    exact = json_schema.make_exact(schema)
    try:
        return str(LLMatcher.grammar_from_json_schema(exact, defaults=_LAYOUT, overrides=_STRICT))  # type: ignore[arg-type]
    except ValueError as error:
        raise ValueError(f"is not valid JSON: {error}") from None


def _with_layout(source: str) -> str:
    """Return a Lark grammar whose embedded schemas are exact and have the layout of a schema that stands alone.

    Raises ValueError for one that is too large.
    """
    parts, outline, end = list[str](), list[str](), 0
    while match := _EMBEDDED.search(source, end):
        begin, end = end, match.end("json") if match["json"] else match.end()
        parts.append(source[begin:end])
        outline.append(source[begin : match.start()] + (match[0] if match[0][0] == "/" and match[0][1:2] != "/" else ""))
        if match["json"]:
            if len(parts) > 2 * bounds.RULES:
                raise ValueError(f"must have at most {bounds.RULES} schemas")
            schema, end = json_schema.parse(source, end)
            layout = schema.get("x-guidance", {})
            if isinstance(layout, dict):
                schema["x-guidance"] = {**json_schema.parse(_LAYOUT, 0)[0], **layout}
            parts.append(json_schema.make_exact(schema))
    bounds.check_rules("".join([*outline, source[end:]]))
    return "".join([*parts, source[end:]])


def _reason(constraint: Constraint, problem: str) -> str:
    """Condense llguidance's message to one line, without the parser's state, in plain words where _REASONS has them."""
    for addition in ("<state>", "<non-verbose/>"):
        problem = problem.partition(addition)[0]
    problem = _DISPLAY.split(problem)[0].strip()
    if "Unimplemented keys: " in problem:
        keys = re.findall(_STRING, problem.partition("Unimplemented keys: ")[2])
        return f"uses {', '.join(keys)}, which cannot be enforced"
    if problem == "NoExtensionBias":
        return "cannot be met: no text matches it"
    if constraint.kind == "regex":
        problem = problem.partition("(in regex): ")[2] or problem
    elif " in regex /" in problem:
        problem = f"pattern: {problem}"
    if "regex parse error" in problem:
        problem = ("" if constraint.kind == "regex" else "pattern: ") + problem.partition("\nerror: ")[2]
    problem = _PLACE.sub("", problem)
    for beginning, reason in _REASONS:
        if match := re.match(beginning, problem):
            problem = reason.format(*match.groups())
            break
    return f"cannot be enforced: {' '.join(problem[:LONGEST_REASON].split())}"
