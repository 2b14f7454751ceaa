"""Languages that answers can be held to: compiled once by llguidance, for one model's vocabulary."""

from __future__ import annotations

import re
import string
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from locallab.engine.grammar import gbnf, json_schema
from locallab.engine.grammar.guide import Guide
from locallab.engine.llama import Model
from locallab.engine.request import Constraint
from locallab.errors import EngineClosed, InvalidField

CAPACITY = 64
"""Compiled constraints that are kept."""
LONGEST = 1 << 18
"""Characters of a schema or grammar; compiling takes a second at worst."""
RULES = 1000
"""Rules of a grammar: beyond, the time to compile it may grow with their cube."""
STACK = 256 << 20
"""Bytes of address space for the stack of the compiling thread."""
LONGEST_REASON = 400
_STACK_LOCK = threading.Lock()

# Python's own layout, which models have read much of: a fixed one leaves most tokens between values to be forced, and a model
# no way to go on with white space for ever. A name can be written in one way only: one that is spelt with \u escapes would
# pass as one that the schema does not know. A schema's own "x-guidance" may say otherwise.
_LAYOUT = (
    r'{"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": ",'
    r' "json_allowed_escapes": "\"\\bfnrt", "json_allow_general_unicode_escapes": false}'
)
_STRICT = '{"lenient": false, "coerce_one_of": false}'

_PROBE = f"{string.printable}  é世😀"

_STRING = r'"(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*"'
_EMBEDDED = re.compile(r'"(?:\\.|[^"\\])*"?|//.*|#.*|/(?:\\.|[^/\\\n])*/?|(?P<json>%json\s*)\{')
_STRINGS = re.compile(rf"\s*\[\s*{_STRING}(?:\s*,\s*{_STRING})*\s*\]\s*")
_RULE = re.compile(r"^\s*[?!]?\w+[^:\n]*:", re.MULTILINE)
_DISPLAY = re.compile(r"\n *[0-9]+ \| ")

_PLACE = re.compile(r"^at \S+ failed to compile JSON schema: ")
_MISSING = re.compile(r"Resource '([^']*)' is not present")


class Grammars:
    """The constraints compiled for one model, the last used ones. Thread-safe; `compile` takes milliseconds, the first one
    of all a quarter of a second more."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._limits = LLParserLimits(verbose_errors=False)
        self._compiled: OrderedDict[Constraint, Guide] = OrderedDict()
        self._lock = threading.Lock()
        self._tokenizer: LLTokenizer | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._closed = False

    def compile(self, constraint: Constraint) -> None:
        """Raises InvalidField, with the constraint's own field, for what cannot be enforced in full; EngineClosed."""
        self._beginning(constraint)

    def guide(self, constraint: Constraint) -> Guide:
        """A guide at the beginning of an answer. Raises as `compile`."""
        return self._beginning(constraint).copy()

    def close(self) -> None:
        """Waits for what is being compiled, and refuses more: the model is about to go."""
        with self._lock:
            self._closed = True
        if self._thread is not None:
            self._thread.shutdown()

    def _beginning(self, constraint: Constraint) -> Guide:
        with self._lock:
            if self._closed:
                raise EngineClosed()
            found = self._find(constraint)
            if found is not None:
                return found
            if self._thread is None:
                self._thread = _thread()
            compiling = self._thread.submit(self._compiled_once, constraint)
        return compiling.result()

    def _compiled_once(self, constraint: Constraint) -> Guide:
        """In the compiling thread, so that who asks for the same meanwhile finds it."""
        with self._lock:
            found = self._find(constraint)
        if found is None:
            found = self._compile(constraint)
            with self._lock:
                self._compiled[constraint] = found
                while len(self._compiled) > CAPACITY:
                    self._compiled.popitem(last=False)
        return found

    def _find(self, constraint: Constraint) -> Guide | None:
        found = self._compiled.get(constraint)
        if found is not None:
            self._compiled.move_to_end(constraint)
        return found

    def _compile(self, constraint: Constraint) -> Guide:
        try:
            constraint.source.encode()
            grammar = _grammar(constraint)
        except UnicodeEncodeError:
            raise InvalidField(constraint.field, "has half of a surrogate pair, which is no character") from None
        except ValueError as error:
            raise InvalidField(constraint.field, str(error)) from None
        if self._tokenizer is None:
            self._tokenizer = _tokenizer(self._model)
        if self._tokenizer.decode_bytes(self._tokenizer.tokenize_str(_PROBE)) != _PROBE.encode():
            raise InvalidField(
                constraint.field, "cannot be enforced: the tokenizer of this model does not keep texts as they are"
            )
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=self._limits)
        problems = [matcher.get_error()] if matcher.is_error() else matcher.get_grammar_warnings() or _dead_end(matcher)
        if problems:
            raise InvalidField(constraint.field, _reason(constraint, problems[0]))
        return Guide(matcher)


def _thread() -> ThreadPoolExecutor:
    """One thread with room for rules that lead to rules thousands of times: llguidance follows them on the stack."""
    thread = ThreadPoolExecutor(1, thread_name_prefix="grammars")
    with _STACK_LOCK:
        before = threading.stack_size(STACK)
        try:
            thread.submit(int).result()
        finally:
            threading.stack_size(before)
    return thread


def _tokenizer(model: Model) -> LLTokenizer:
    """A token that shows no text (control tokens) has its name behind 0xFF, a byte that no text holds: it can only be asked
    for by name. All others stand for what they show."""
    tokens = [model.piece(t) or _hidden(model.markup(t)) for t in range(model.n_vocab)]
    vocabulary, tokenize = model.native_tokenizer
    return LLTokenizer.from_llamacpp(  # type: ignore[attr-defined, no-any-return]
        tokens=tokens, vocab_ptr=vocabulary, tokenize_fptr=tokenize, eos_token=sorted(model.end_tokens), slices=None
    )


def _dead_end(matcher: LLMatcher) -> list[str]:
    """What goes wrong at the very beginning."""
    trial = matcher.deep_copy()
    trial.consume_tokens(trial.compute_ff_tokens())
    trial.compute_bitmask()
    return [trial.get_error()] if trial.is_error() else []


def _hidden(name: bytes) -> bytes:
    return b"\xff" + name if name else b""


def _grammar(constraint: Constraint) -> str:
    """What llguidance makes a matcher from; raises ValueError that says what is wrong."""
    source = constraint.source
    if len(source) > LONGEST:
        raise ValueError(f"must have at most {LONGEST} characters, has {len(source)}")
    match constraint.kind:
        case "json_object":
            return _schema('{"type": "object"}')
        case "json_schema":
            return _schema(source)
        case "regex":
            return str(LLMatcher.grammar_from_regex(source))
        case "lark":
            return _lark(_guided(source))
        case "gbnf":
            return _lark(gbnf.to_lark(source))
        case "choice":
            return _lark(_choice(source))


def _lark(source: str) -> str:
    if len(_RULE.findall(source)) > RULES:
        raise ValueError(f"must have at most {RULES} rules")
    return str(LLMatcher.grammar_from_lark(source))


def _schema(source: str) -> str:
    text = "{}" if source.strip() == "true" else source
    if not text.lstrip().startswith("{"):
        raise ValueError("must be a JSON Schema: a JSON object")
    schema, _ = json_schema.parsed(text, len(text) - len(text.lstrip()), whole=True)
    exact = json_schema.exact(schema)
    try:
        return str(LLMatcher.grammar_from_json_schema(exact, defaults=_LAYOUT, overrides=_STRICT))  # type: ignore[arg-type]
    except ValueError as error:
        raise ValueError(f"is not valid JSON: {error}") from None


def _guided(source: str) -> str:
    """A Lark grammar, with the layout in its schemas that a schema by itself gets."""
    made, end = [], 0
    while match := _EMBEDDED.search(source, end):
        made.append(source[end : match.end("json") if match["json"] else match.end()])
        end = match.end()
        if match["json"]:
            text, end = _embedded(source, match.end("json"))
            made.append(text)
    return "".join([*made, source[end:]])


def _embedded(source: str, begin: int) -> tuple[str, int]:
    """The schema that begins there, and where it ends."""
    schema, end = json_schema.parsed(source, begin)
    layout = schema.get("x-guidance", {})
    if isinstance(layout, dict):
        schema["x-guidance"] = {**json_schema.parsed(_LAYOUT, 0)[0], **layout}
    return json_schema.exact(schema), end


def _choice(source: str) -> str:
    """Lark writes strings as JSON does."""
    if not _STRINGS.fullmatch(source):
        raise ValueError("must be a list of at least one string")
    return f"start: {' | '.join(re.findall(_STRING, source))}"


def _reason(constraint: Constraint, problem: str) -> str:
    """llguidance's message in one line, without what it adds about its own state."""
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
    if problem.startswith("min/maxProperties"):
        problem = "minProperties or maxProperties: supported only where all of properties are required"
    if problem.startswith("circular references"):
        problem = "$ref: what leads back to itself must stand alone, without other keywords beside it"
    if problem.startswith("patternProperty regexes"):
        problem = json_schema.OVERLAP
    if "Regex is empty" in problem:
        problem = "pattern or format: together with the other keywords no text meets it"
    if problem.startswith("Failed to generate regex for"):
        problem = "minimum or maximum: it has too many digits"
    if missing := _MISSING.match(problem):
        problem = f"$ref or $schema: {missing[1]} is not within the schema, and nothing is fetched"
    if problem.startswith("oneOf"):
        problem = "oneOf is supported only where a value shows at once which of the schemas is meant; anyOf always is"
    return f"cannot be enforced: {' '.join(problem[:LONGEST_REASON].split())}"
