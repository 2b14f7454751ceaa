"""Translated GBNF: the texts that it matches, and the reasons of refusals."""

from __future__ import annotations

import re

import pytest
from llguidance import LLMatcher, LLTokenizer

from locallab.engine.grammar.gbnf import to_lark

BYTES = LLTokenizer("byte")

MATCHES: dict[str, tuple[str, list[str], list[str]]] = {
    "literal": ('root ::= "a/b\\n"', ["a/b\n"], ["a/b", "ab\n"]),
    "alternatives over lines": ('root ::= "a" |\n  "b"', ["a", "b"], ["ab"]),
    "group": ('root ::= (\n "a" | "b" )+ "c"', ["abac"], ["c", "ab"]),
    "repetition": ('root ::= "a"{2,3} "b"? "c"{2}', ["aacc", "aaabcc"], ["acc", "aaaacc"]),
    "class": ("root ::= [a-c]+ [^x/]", ["abcz", "a\n"], ["ax", "a/", "z"]),
    "brackets in a class": ("root ::= [\\]\\[]+", ["][", "]"], ["a"]),
    "any character": ("root ::= . .", ["a\n", "é\r"], ["a", "abc"]),
    "comment": ('# "one\nroot ::= "a" # two "\n# three', ["a"], ["b"]),
    "hash in a literal": ('root ::= "#a" [#]', ["#a#"], ["#a"]),
    "names that differ by case": ('root ::= aB a-b a_b\naB ::= "1"\na-b ::= "2"\na_b ::= "3"', ["123"], ["111"]),
    "a rule called start": ('root ::= start\nstart ::= "s"', ["s"], ["r"]),
    "left recursion": ('root ::= root "b" | "a"', ["abb", "a"], ["b"]),
    "nothing": ('root ::= "" | "a"', ["", "a"], ["b"]),
    "four digits": ('root ::= "\\u00e9ab\\u0041\\u1000"', ["éabA\u1000"], ["\ue9ab"]),
    "eight digits": ("root ::= [\\U0001F600-\\U0001F603]", ["😁"], ["a"]),
    "two digits": ('root ::= "\\x41\\xe9" [\\x00-\\x1f]', ["Aé\n"], ["Aé "]),
    "escapes that have a meaning": ('root ::= "\\x22\\x5c" [\\x5d\\x5e\\x2d]+', ['"\\]^-'], ['"\\a']),
    "a pattern that could eat what follows": ('root ::= word "b"\nword ::= [a-z]+', ["ab", "abb"], ["a"]),
    "nesting": ('root ::= "(" root ")" | [0-9]+', ["((12))", "3"], ["((12)"]),
}


def matches(grammar: str, text: str) -> bool:
    matcher = LLMatcher(BYTES, LLMatcher.grammar_from_lark(grammar), log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    tokens = BYTES.tokenize_str(text)
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


@pytest.mark.parametrize("name", MATCHES)
def test_it_matches_what_the_grammar_says(name: str) -> None:
    grammar, good, bad = MATCHES[name]
    lark = to_lark(grammar)
    assert [text for text in good if not matches(lark, text)] == []
    assert [text for text in bad if matches(lark, text)] == []


REFUSED = {
    "".join(f"r{n} ::= r{n + 1}\n" for n in range(1001)) + "root ::= r0": "at most 1000 rules, has 1002",
    'root ::= "a': "Unexpected end of input",
    "": "no rule named root",
    'x ::= "a"': "no rule named root",
    "root ::= x": "'x' is used, but not defined",
    'root ::= "a"\nroot ::= "b"': "'root' is defined more than once",
    'root ::= "\\ud800"': "\\ud800 is no character",
    'root ::= "\\U00110000"': "\\U00110000 is no character",
    'root ::= "a" )': "line 1",
    "root ::= [a\\-z]": "Invalid escape sequence \\- at line 1",
    "root ::= " + "(" * 5000 + '"a"' + ")" * 5000: "nested too deeply",
}


@pytest.mark.parametrize("grammar", REFUSED, ids=range(len(REFUSED)))
def test_a_grammar_that_cannot_be_read_is_refused(grammar: str) -> None:
    with pytest.raises(ValueError, match=re.escape(REFUSED[grammar])):
        to_lark(grammar)
