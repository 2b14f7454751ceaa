"""Code in pieces with the kinds of its tokens, by Pygments, within bounds of time."""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Iterator, Mapping
from itertools import groupby
from operator import itemgetter

from pygments.lexer import Lexer
from pygments.lexers import get_all_lexers, get_lexer_by_name
from pygments.token import Token, _TokenType

# fmt: off
LANGUAGES = frozenset(
    (
        "ada", "apacheconf", "awk", "bash", "batch", "bibtex", "c", "clojure", "cmake", "cobol", "coffeescript",
        "common-lisp", "console", "cpp", "crystal", "csharp", "css", "cuda", "d", "dart", "delphi", "diff", "docker",
        "dot", "ebnf", "elixir", "elm", "emacs-lisp", "erb", "erlang", "fortran", "fsharp", "gas", "gdscript", "glsl",
        "go", "graphql", "groovy", "haskell", "hlsl", "html", "http", "ini", "java", "javascript", "jinja", "json",
        "jsonnet", "jsp", "jsx", "julia", "kotlin", "less", "llvm", "lua", "make", "markdown", "mysql", "nasm",
        "nginx", "nim", "nix", "objective-c", "ocaml", "perl", "php", "plpgsql", "postgresql", "powershell", "prolog",
        "properties", "protobuf", "pug", "pycon", "pytb", "python", "qml", "r", "racket", "rst", "ruby", "rust",
        "sass", "scala", "scheme", "scss", "sed", "solidity", "sql", "sqlite3", "swift", "systemd", "systemverilog",
        "tcl", "terraform", "tex", "text", "toml", "tsql", "twig", "typescript", "vb.net", "verilog", "vhdl", "vim",
        "wgsl", "xml", "yaml", "zig",
    )
)
# fmt: on
"""Languages by one of their names in Pygments: those whose lexers stay quick on hostile texts, line for line."""

OTHER_NAMES: Mapping[str, str] = {
    "h": "c",
    "hpp": "cpp",
    "ipython": "python",
    "jsonc": "json",
    "kt": "kotlin",
    "mjs": "javascript",
    "node": "javascript",
    "patch": "diff",
    "plain": "text",
    "plaintext": "text",
    "svelte": "html",
    "tsx": "typescript",
    "txt": "text",
    "vue": "html",
    "yml": "yaml",
}
"""Names that models use and Pygments does not know."""

LONGEST_LINE = 2000
"""Characters of a line; code with a longer one has no tokens, since regular expressions take the square of its length."""

SECONDS = 0.4
"""Processor time for the tokens of one text. What is left then has none."""

KINDS: Mapping[_TokenType, str] = {
    Token.Comment: "c",
    Token.Comment.Preproc: "cp",
    Token.Keyword: "k",
    Token.Keyword.Constant: "kc",
    Token.Keyword.Type: "kt",
    Token.Literal.Number: "m",
    Token.Literal.String: "s",
    Token.Literal.String.Escape: "se",
    Token.Literal.String.Interpol: "se",
    Token.Name.Attribute: "na",
    Token.Name.Builtin: "nb",
    Token.Name.Class: "nc",
    Token.Name.Constant: "kc",
    Token.Name.Decorator: "nd",
    Token.Name.Exception: "nc",
    Token.Name.Function: "nf",
    Token.Name.Namespace: "nn",
    Token.Name.Tag: "nt",
    Token.Name.Variable: "nv",
    Token.Operator.Word: "k",
    Token.Generic.Deleted: "gd",
    Token.Generic.Inserted: "gi",
    Token.Generic.Heading: "gh",
    Token.Generic.Subheading: "gh",
    Token.Generic.Prompt: "c",
    Token.Generic.Output: "go",
    Token.Generic.Traceback: "gd",
    Token.Generic.Error: "gd",
    Token.Generic.Strong: "gs",
    Token.Generic.Emph: "ge",
}
"""Classes of tokens that have a colour. A type has that of its nearest ancestor; all others are plain."""

_HIDDEN = re.compile(
    r"([\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff\U000e0000-\U000e007f])"
)


def highlighted(code: str, language: str, until: float) -> Iterator[tuple[str, str]]:
    """Yield pieces of the code, each with its kind, which is "" for one without a colour. Together they are the code.

    What is left when the thread's processor time is `until` has no colour.
    """
    lexer = lexer_of(language)
    if lexer is None or any(len(line) > LONGEST_LINE for line in code.split("\n")):
        yield from [("", code)] if code else ()
        return
    for kind, pieces in groupby(_tokens(lexer, code, until), key=itemgetter(0)):
        yield kind, "".join(piece for _, piece in pieces)


def _tokens(lexer: Lexer, code: str, until: float) -> Iterator[tuple[str, str]]:
    done = 0
    for start, kind, piece in lexer.get_tokens_unprocessed(code + "\n"):  # many end tokens at the line's end only
        if start != done or time.thread_time() > until:
            break
        piece = piece[: len(code) - done]
        done += len(piece)
        if piece:
            yield _kind(kind), piece
    if done < len(code):
        yield "", code[done:]


@functools.cache
def _kind(token: _TokenType) -> str:
    return next((KINDS[each] for each in reversed(token.split()) if each in KINDS), "")


def lexer_of(language: str) -> Lexer | None:
    """Return the lexer of a name such as "py" or "{.python}", or None: of languages that are not known nothing is guessed."""
    name = re.split(r"[:,}\s]", language.lower().lstrip("{."), maxsplit=1)[0]
    known = _names().get(name)
    return _lexer(known) if known else None


@functools.cache
def _names() -> Mapping[str, str]:
    """Return the language by each of its names."""
    found: dict[str, str] = {}
    for _, aliases, _, _ in get_all_lexers(plugins=False):
        for language in LANGUAGES.intersection(aliases):
            found |= dict.fromkeys(aliases, language)
    return {**found, **OTHER_NAMES}


@functools.cache
def _lexer(language: str) -> Lexer:
    # Markdown's own would look for lexers of any language in it.
    return get_lexer_by_name(language, handlecodeblocks=False)


def spelled_out(text: str) -> list[str]:
    """Split a text at characters that are invisible or change the direction of others; every second part is one's number."""
    parts = _HIDDEN.split(text)
    parts[1::2] = [f"U+{ord(letter):04X}" for letter in parts[1::2]]
    return parts
