"""Hundreds of JSON schemas, keyword by keyword: each is enforced in full, or refused with the keyword that cannot be."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import gguf
import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis_jsonschema import from_schema
from llguidance import LLMatcher, LLTokenizer

from locallab.chat.json_schema import relaxed
from locallab.engine import Constraint, SamplingParams, TextEngine
from locallab.engine.grammar import bounds, grammars
from locallab.errors import InvalidField
from tests.support import tiny_gguf
from tests.support.live_engine import Answer, running
from tests.support.tiny_gguf import BOS

CUT = 100
MORE = [(text, gguf.TokenType.NORMAL) for text in ["▁", '{"', '": ', '▁"', '",', '"}', '"]', "true", "null"]]
ENDS = tuple((ord(end) + 3, 3.0) for end in '"]}')
"""Bias towards the bytes that end a wild answer."""
BYTES = LLTokenizer("byte")

CLOSED = {"additionalProperties": False}
ANY = [None, True, False, 0, 1, -1, 0.5, "", "a", [], [1], {}, {"a": 1}]
"""One value of each kind, for schemas that say nothing of most of them."""


def but(*kept: str) -> list[Any]:
    """Return the values of ANY that have other types than these."""
    return [value for value in ANY if not any(jsonschema.Draft202012Validator({"type": kind}).is_valid(value) for kind in kept)]


def obj(required: str = "", **properties: Any) -> Any:
    """Return the schema of a closed object."""
    return {"type": "object", "properties": properties, "required": required.split(), **CLOSED}


def arr(items: Any, **more: Any) -> Any:
    return {"type": "array", "items": items, **more}


INT, STR, BOOL, NULL = {"type": "integer"}, {"type": "string", "maxLength": 6}, {"type": "boolean"}, {"type": "null"}
BIT = {"enum": [0, 1]}

Row = tuple[Any, list[Any], list[Any]]

CASES: dict[str, list[Row]] = {
    "type": [
        (True, ANY, []),
        ({}, ANY, []),
        (NULL, [None], but("null")),
        (BOOL, [True, False], but("boolean")),
        (INT, [0, -1, 7, 123456], [0.5, *but("number")]),
        ({"type": "number"}, [0, -1, 0.5, -2.25, 1e3], but("number")),
        ({"type": "string"}, ["", "a", "é😀", '"\\/\n\t'], but("string")),
        ({"type": "array"}, [[], [1, "a", [None]]], but("array")),
        ({"type": "object"}, [{}, {"a": 1}, {"b": {"c": []}}], but("object")),
        ({"type": ["integer", "null"]}, [None, 5], [0.5, *but("number", "null")]),
        ({"type": ["string", "array"]}, ["a", []], but("string", "array")),
        ({"type": ["object", "boolean"]}, [{}, True], but("object", "boolean")),
        ({"type": ["string"]}, ["a"], but("string")),
    ],
    "const": [
        ({"const": None}, [None], but("null")),
        ({"const": False}, [False], [True, 0, "", None, []]),
        ({"const": 1}, [1], [True, "1", 2, [1]]),
        ({"const": 0}, [0], [False, "", None, 1]),
        ({"const": -7}, [-7], [7, -70, -7.5]),
        ({"const": 2.5}, [2.5], [2, 2.55, "2.5"]),
        ({"const": 1e-7}, [], [0, 1e-6]),
        ({"const": 2**53}, [2**53], [2**53 - 1]),
        ({"const": ""}, [""], [" ", None, "a"]),
        ({"const": 'q"\\\n\té\u2028'}, ['q"\\\n\té\u2028'], ["q", 'q"\\\n\té']),
        ({"const": []}, [[]], [{}, [[]], None]),
        ({"const": [1, [2, "x"]]}, [[1, [2, "x"]]], [[1, [2]], [1, 2, "x"], [[2, "x"], 1]]),
        ({"const": {}}, [{}], [[], {"a": 1}]),
        ({"const": {"a": {"b": [True]}}}, [{"a": {"b": [True]}}], [{"a": {"b": [1]}}, {"a": {}}, {"b": [True]}]),
        ({"const": {"minProperties": 2}}, [{"minProperties": 2}], [{}, {"minProperties": 3}]),
        ({"type": "integer", "const": 4}, [4], [5, "4"]),
    ],
    "enum": [
        ({"enum": [1]}, [1], [True, 2, "1"]),
        ({"enum": ["red", "green"]}, ["red", "green"], ["blue", "re", "redgreen", None]),
        ({"enum": [None, True, 3, "x", [1], {"y": 2}]}, [None, True, 3, "x", [1], {"y": 2}], [False, 1, "y", [], {"y": 3}]),
        ({"enum": ["a", "a"]}, ["a"], ["b"]),
        ({"type": "string", "enum": ["a", 1, None]}, ["a"], [1, None]),
        ({"enum": [[0], [False]]}, [[0], [False]], [[None], [1], []]),
        ({"enum": ["", " ", "  "]}, ["", " ", "  "], ["   ", "\t"]),
        ({"enum": [1, 1.5, 10, 100]}, [1, 1.5, 10, 100], [15, 1000, 0, 1.25]),
        ({"enum": ["ab", "abc"], "minLength": 3}, ["abc"], ["ab"]),
        ({"enum": [1, 2, 3], "minimum": 2}, [2, 3], [1]),
        ({"enum": ["😀", "ü"]}, ["😀", "ü"], ["u"]),
    ],
    "what says nothing": [
        ({"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": BIT}, [{}, {"é": 1}], [{"a": 7}]),
        ({"type": "object", "propertyNames": {"type": ["string"], "title": "t"}}, [{"a": 1}], []),
        ({"type": "object", "propertyNames": True}, [{"a": 1}], []),
        ({"type": "object", "unevaluatedProperties": True}, [{"a": 1}], [[]]),
        ({"type": "array", "items": BIT, "unevaluatedItems": {}, "uniqueItems": False}, [[1, 1]], [[2]]),
        ({"type": "array", "items": BIT, "maxItems": 1, "uniqueItems": True}, [[], [1]], [[1, 0]]),
        ({"type": "array", "contains": BIT, "minContains": 0, "items": BOOL}, [[], [True]], [[1]]),
        ({"type": "array", "minContains": 3, "maxContains": 1, "items": BIT}, [[], [1]], [[2]]),
        ({"type": "integer", "not": False}, [1], [True]),
        ({"if": BIT, "then": True, "type": "integer"}, [0, 7], ["a"]),
        ({"then": BIT, "else": BOOL, "type": "integer"}, [0, 7], ["a"]),
        ({**obj("a", a=BIT), "dependentRequired": {"a": []}, "dependentSchemas": {"a": True}, "dependencies": {"a": []}},
         [{"a": 1}], [{"a": 2}]),
        ({"$defs": {"x": {"$dynamicAnchor": "here", **BIT}}, "$ref": "#here"}, [1], [2]),
        *(({"type": "string", "format": name, "maxLength": 2}, ["", "a/"], ["abc"]) for name in (
            "regex", "iri", "json-pointer", "uri-reference", "unknown", "mine", "path", "password", "idn-email", "binary",
        )),
        ({**BIT, "format": "int32"}, [1], [2]),
    ],
    "lengths": [
        ({"type": "string", "minLength": 0, "maxLength": 0}, [""], ["a", " "]),
        ({"type": "string", "maxLength": 2}, ["", "a", "ab", "é😀", '\\"'], ["abc", "éé😀"]),
        ({"type": "string", "minLength": 2, "maxLength": 3}, ["ab", "abc", "\n\n", "😀😀"], ["", "a", "abcd", "😀"]),
        ({"type": "string", "minLength": 2, "maxLength": 2}, ["ab"], ["a", "abc"]),
        ({"type": "string", "maxLength": 2.0}, ["ab"], ["abc"]),
        ({"type": "string", "minLength": 1.0, "maxLength": 4}, ["a"], [""]),
        ({"maxLength": 1}, ["a", *but("string")], ["ab"]),
        ({"minLength": 2}, ["ab", *but("string")], ["", "a"]),
        ({"type": "string", "maxLength": 2**40, "pattern": "^a?$"}, ["", "a"], ["aa"]),
        ({"type": "string", "minLength": 2, "maxLength": 5, "pattern": "^a*$"}, ["aa", "aaaaa"], ["a", "aaaaaa", "ab"]),
    ],
    "pattern": [
        ({"type": "string", "pattern": "^a+b?$"}, ["a", "aab"], ["", "b", "abb", "ba"]),
        ({"type": "string", "pattern": "^x|y$", "maxLength": 5}, ["x", "xa", "ay"], ["a", "ax", "ya"]),
        ({"type": "string", "pattern": "^(a|b)$|^c$"}, ["a", "b", "c"], ["ab", "ca", ""]),
        ({"type": "string", "pattern": "b", "maxLength": 4}, ["b", "abc", "bb"], ["", "a", "cd"]),
        ({"type": "string", "pattern": "(?:^|-)z", "maxLength": 4}, ["z", "a-z"], ["az", "-a"]),
        ({"type": "string", "pattern": "^[0-9]{3}-[a-f]{2,}$", "maxLength": 8}, ["123-af"], ["12-af", "123-a", "123-ag"]),
        ({"type": "string", "pattern": "^\\d+$", "maxLength": 3}, ["0", "123"], ["", "a", "1a"]),
        ({"type": "string", "pattern": "^\\w{1,3}$"}, ["a_1"], ["", "a b", "abcd"]),
        ({"type": "string", "pattern": "^\\(\\d{2}\\) \\$\\.$"}, ["(12) $."], ["12 $.", "(12) $x"]),
        ({"type": "string", "pattern": "^[^\"]{1,3}$"}, ["a\\b", "\n"], ['"', 'a"', 'a"b']),
        ({"type": "string", "pattern": "^[^\\\\]{1,2}$"}, ["ab", '"'], ["\\", "a\\"]),
        ({"type": "string", "pattern": "^[^\"\\\\]{0,3}$"}, ["", "ab", "\t"], ['"', "\\", 'a"', '\\"']),
        ({"type": "string", "pattern": "^[^a-z\"]{1,2}$"}, ["A", "1\n"], ["a", '"', '1"']),
        ({"type": "string", "pattern": "^(?:[^'\"]|'){0,2}$"}, ["'", "a'"], ['"']),
        ({"type": "string", "pattern": "^[^<>:\"/\\\\|?*]{1,3}$"}, ["abc", "a\n"], ['a"', "\\", "a/b", "?"]),
        ({"type": "string", "pattern": "^[^\"\\r\\n]{1,2}$"}, ["a", "\t"], ['"', "\r", "\na"]),
        ({"type": "string", "pattern": "^[^\\x00-\\x1f\"]$"}, ["a", "\\"], ['"', "\n", "\t"]),
        ({"type": "string", "pattern": "^[\\x00-\\x7f]{1,2}$"}, ["a", '"\\', "\n~"], ["é", "aé"]),
        ({"type": "string", "pattern": "^[\\x00-!]$"}, ["\t", " ", "!"], ['"', "a", "\\"]),
        ({"type": "string", "pattern": "^[ -\\x7f]{1,2}$"}, ["a~", '"\\'], ["\n", "é"]),
        ({"type": "string", "pattern": "^[\\n\\v\\f]$"}, ["\n", "\f"], ["\t", '"', "\\"]),
        ({"type": "string", "pattern": "^[\\b\\t]$"}, ["\b", "\t"], ["b", "t", "\n"]),
        ({"type": "string", "pattern": "^[^\\s\"]{1,2}$"}, ["a", "a\\"], [" ", '"', "\n"]),
        ({"type": "string", "pattern": "^[\\s\"]$"}, [" ", '"', "\n"], ["a", "\\"]),
        ({"type": "string", "pattern": "^[!-~]{1,2}$"}, ["a", '"~'], [" ", "é"]),
        ({"type": "string", "pattern": "^[a\\-z]$"}, ["a", "-", "z"], ["b"]),
        ({"type": "string", "pattern": "^[az-]$"}, ["a", "-", "z"], ["b"]),
        ({"type": "string", "pattern": "^\\u00e9\\x41$"}, ["éA"], ["eA", "éa"]),
        ({"type": "string", "pattern": "^a/b\\/c$"}, ["a/b/c"], ["a/b", "a\\/b/c"]),
        ({"type": "string", "pattern": "(?i)^ab$"}, ["ab", "Ab"], ["abc", "b"]),
        ({"type": "string", "pattern": "^(?P<year>19|20)[0-9]{2}$"}, ["1999"], ["1899", "199"]),
        ({"type": "string", "pattern": "^a*?b{2,3}?$", "maxLength": 6}, ["bb", "abbb"], ["b", "abbbb"]),
        ({"pattern": "^a$"}, ["a", *but("string")], ["", "b"]),
        ({"allOf": [{"type": "string", "pattern": "^a", "maxLength": 4}, {"pattern": "b$"}]}, ["ab", "acb"], ["a", "b", "ba"]),
    ],
    "pattern as in JavaScript": [
        ({"type": "string", "pattern": "^.$"}, ["a", '"', "é"], ["\n", "\r", "\u2028", "\u2029", ""]),
        ({"type": "string", "pattern": "^a$"}, ["a"], ["a\n", "\na"]),
        ({"type": "string", "pattern": "(?s)^.$"}, ["a", "\n", "\r"], ["", "ab"]),
        ({"type": "string", "pattern": "^\\S$"}, ["a", '"', "\\"], [" ", "\n", "\ufeff", "\u00a0"]),
        ({"type": "string", "pattern": "^\\s$"}, [" ", "\t", "\u00a0", "\u2028"], ["a", "\x85"]),
        ({"type": "string", "pattern": "^[^\\S]$"}, [" ", "\t"], ["a", "\x85"]),
        ({"type": "string", "pattern": "^\\d$"}, ["7"], ["\u0663", "a"]),
        ({"type": "string", "pattern": "^\\w$"}, ["a", "_"], ["é", "-"]),
        ({"type": "string", "pattern": "^[\\w-.]{1,2}$"}, ["a", "-.", "_"], ["é", "+", ","]),
        ({"type": "string", "pattern": "^[[:a]]$"}, ["[]", ":]", "a]"], ["a", ":", "[", "b]"]),
        ({"type": "string", "pattern": "^[a[b]c$"}, ["ac", "[c", "bc"], ["a", "b", "c"]),
        ({"type": "string", "pattern": "^[a-c&&b]$"}, ["a", "b", "&"], ["&&", "d"]),
        ({"type": "string", "pattern": "^[^a-c&&b]$"}, ["d", "^"], ["a", "&", "b"]),
        ({"type": "string", "pattern": "^[+--]$"}, ["+", ",", "-"], ["*", "."]),
        ({"type": "string", "pattern": "^[a~~b]$"}, ["a", "~", "b"], ["c"]),
        ({"type": "string", "pattern": "^\\<\\>$"}, ["<>"], ["", "a"]),
        ({"type": "string", "pattern": "^\\p{Lu}\\P{Lu}$"}, ["Aa", "É1", 'A"'], ["AA", "aa"]),
        ({"type": "string", "pattern": "^[\\P{L}]$"}, ["1", '"'], ["a", "é"]),
        ({"type": "string", "pattern": "^[^\\P{L}]$"}, ["a", "é"], ["1", '"']),
    ],
    "format": [
        ({"type": "string", "format": "date"}, ["2024-02-29", "2000-02-29", "0001-01-01"],
         ["2023-02-29", "1900-02-29", "2024-2-1", "2024-04-31", "0000-01-01", "20240101", "2024-13-01"]),
        ({"type": "string", "format": "time"}, ["23:59:59Z", "00:00:00.5+01:00"],
         ["24:00:00Z", "12:00:60Z", "12:00:00", "12:00Z", "12:60:00Z"]),
        ({"type": "string", "format": "date-time"}, ["2024-02-29T23:59:59Z", "1999-12-31t00:00:00.25-08:00"],
         ["2023-02-29T00:00:00Z", "2024-01-01 00:00:00Z", "1998-12-31T23:58:60Z", "2024-01-01"]),
        ({"type": "string", "format": "duration"}, ["P1D", "PT1H30M", "P2W"], ["P", "1D", "PT", "P1D2H", "PT1D"]),
        ({"type": "string", "format": "email"}, ["a@b.c", "x.y+z@example.com"],
         ["a", "@b", "a@", ".a@b.c", "a..b@c.d", "a b@c.d"]),
        ({"type": "string", "format": "hostname"}, ["a", "a-1.example"],
         ["-a", "a-", "a..b", "a_b", "x" * 64, ".".join(["x" * 63] * 4)]),
        ({"type": "string", "format": "ipv4"}, ["0.0.0.0", "255.1.20.3"], ["256.0.0.1", "1.2.3", "01.2.3.4", "1.2.3.4.5"]),
        ({"type": "string", "format": "ipv6"}, ["::", "::1", "1:2:3:4:5:6:7:8"], [":", "1::2::3", "12345::", "1:2:3:4:5:6:7"]),
        ({"type": "string", "format": "uuid"}, ["2eb8aa08-aa98-11ea-b4aa-73b441d16380"],
         ["2eb8aa08", "2eb8aa08-aa98-11ea-b4aa-73b441d1638g"]),
        ({"type": "string", "format": "uri"}, ["http://a.b/c?d#e", "urn:x:y"], ["//a.b", "a b:", "http://[::1", ":a"]),
        ({"format": "date"}, ["2024-02-29", *but("string")], ["x", "2023-02-29"]),
        ({"type": "string", "format": "date", "pattern": "^2023"}, ["2023-05-06"], ["2024-05-06", "2023-02-29"]),
        ({"type": "string", "format": "date", "allOf": [{"pattern": "-02-29$"}]}, ["2024-02-29"], ["2023-02-29", "2024-02-28"]),
        ({"type": "string", "format": "date", "enum": ["2023-02-29", "2024-02-29"]}, ["2024-02-29"], ["2023-02-29"]),
    ],
    "bounds of integers": [
        ({**INT, "minimum": 3, "maximum": 5}, [3, 4, 5], [2, 6, 3.5, 33]),
        ({**INT, "minimum": -3, "maximum": 12}, [-3, 0, 12], [-4, 13, -30]),
        ({**INT, "minimum": -20, "maximum": -9}, [-20, -9, -15], [-8, -21, 9, 0]),
        ({**INT, "exclusiveMinimum": 0, "exclusiveMaximum": 10}, [1, 9], [0, 10, -1]),
        ({**INT, "minimum": 0.5, "maximum": 2.5}, [1, 2], [0, 3]),
        ({**INT, "exclusiveMinimum": -1, "maximum": 0}, [0], [-1, 1]),
        ({**INT, "minimum": 99, "maximum": 1001}, [99, 100, 999, 1001], [98, 1002, 9999]),
        ({**INT, "minimum": 5, "exclusiveMinimum": 7, "maximum": 9}, [8, 9], [5, 7, 10]),
        ({**INT, "maximum": 2**63 - 1, "minimum": 2**53}, [2**53, 2**63 - 1], [2**63, 2**53 - 1]),
        ({**INT, "minimum": -(2**62), "maximum": -(2**53)}, [-(2**62), -(2**53)], [-(2**62) - 1, 1 - 2**53]),
        ({**INT, "minimum": 7, "maximum": 2**64 - 1}, [7, 2**40], [6, 2**64]),
        ({**INT, "minimum": 3, "exclusiveMinimum": True, "maximum": 6}, [4, 6], [3]),
        ({**INT, "minimum": 3, "exclusiveMinimum": False, "maximum": 6}, [3, 6], [2, 7]),
    ],
    "bounds of numbers": [
        ({"type": "number", "minimum": 0, "maximum": 1}, [0, 1, 0.5, 0.125], [-0.5, 1.5, 2, -1]),
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 0.5}, [0.25, 0.5], [0, 0.75, -0.25]),
        ({"type": "number", "exclusiveMinimum": 8, "exclusiveMaximum": 8.5}, [8.25], [8, 8.5, 9]),
        ({"type": "number", "minimum": -0.5, "exclusiveMaximum": 0}, [-0.25, -0.5], [0, -0.75, 0.25]),
        ({"type": "number", "minimum": -3.5, "exclusiveMaximum": -3}, [-3.25, -3.5], [-3, -4]),
        ({"allOf": [{"type": "number", "exclusiveMinimum": 2}, {"maximum": 2.5}]}, [2.25, 2.5], [2, 3]),
        ({"type": "number", "minimum": -1.5, "maximum": 2.25}, [-1.5, 0, 2.25, 1], [-1.75, 2.5, 3]),
        ({"type": "number", "exclusiveMinimum": 1, "exclusiveMaximum": 3}, [2, 1.5, 2.75], [1, 3]),
        ({"type": "number", "minimum": 10.5}, [10.5, 11, 200], [10, 1, 10.25]),
        ({"type": "number", "maximum": -2}, [-2, -2.5, -30], [-1, 0, 2]),
        ({"minimum": 2}, [2, 3.5, *but("number")], [1, 0, -5]),
        ({"exclusiveMaximum": 1}, [0.5, -4, *but("number")], [1, 1.5, 2]),
        ({"type": "number", "exclusiveMinimum": 0, "properties": {"a": {"maximum": 0.5}}}, [0.25, 1], [0, -1]),
    ],
    "multipleOf": [
        ({**INT, "multipleOf": 3, "minimum": 0, "maximum": 99}, [0, 3, 99], [1, 98, 100]),
        ({**INT, "multipleOf": 0.5, "minimum": 0, "maximum": 9}, [0, 4], [10]),
        ({"type": "number", "multipleOf": 0.25, "minimum": 0, "maximum": 9}, [0, 0.25, 8.75, 9], [0.125, 0.3, 9.25]),
        ({"type": "number", "multipleOf": 1.5, "minimum": -6, "maximum": 6}, [1.5, 3, -4.5], [1, 2, 2.5]),
        ({"allOf": [{**INT, "multipleOf": 4, "minimum": 0, "maximum": 99}, {"multipleOf": 6}]}, [0, 12, 96], [4, 6, 18]),
        ({"multipleOf": 2}, [0, 4, *but("number")], [1, 3]),
        (obj("a b", a={"multipleOf": 0.25, "type": "number", "minimum": 0, "maximum": 1}, b={**BIT, "multipleOf": 65537}),
         [{"a": 0.75, "b": 0}], [{"a": 0.3, "b": 0}, {"a": 0.5, "b": 1}]),
    ],
    "arrays": [
        (arr(BOOL, maxItems=2), [[], [True], [True, False]], [[1], [True, True, True], {}]),
        (arr(BIT, minItems=2, maxItems=3), [[0, 1], [1, 1, 1]], [[0], [0, 0, 0, 0], [0, 2]]),
        (arr(True, minItems=1, maxItems=1), [[None], [[]]], [[], [1, 2]]),
        (arr(False), [[]], [[1], [None]]),
        (arr({}, maxItems=0), [[]], [[1]]),
        (arr(BIT, maxItems=2.0), [[0, 1]], [[0, 0, 0]]),
        (arr(arr(BIT, maxItems=1), maxItems=2), [[], [[]], [[1], [0]]], [[[1, 1]], [1]]),
        (arr({"type": "string", "maxLength": 1}, maxItems=2), [["a"], ["", "b"]], [["ab"], [1]]),
        ({"type": "array", "prefixItems": [BOOL, NULL], "items": False}, [[], [True], [False, None]],
         [[None], [True, 1], [True, None, 1]]),
        ({"type": "array", "prefixItems": [BOOL, NULL], "items": False, "minItems": 2}, [[False, None]], [[], [True]]),
        ({"type": "array", "prefixItems": [BIT], "items": BOOL, "maxItems": 3}, [[], [0], [1, True, False]], [[True], [0, 1]]),
        ({"type": "array", "prefixItems": [BIT, BOOL], "maxItems": 1}, [[], [1]], [[1, True], [True]]),
        ({"type": "array", "items": [BIT, BOOL], "additionalItems": False}, [[], [1, True]], [[True], [1, True, 1]]),
        ({"type": "array", "items": [BIT], "additionalItems": NULL, "maxItems": 2}, [[1, None]], [[1, 1]]),
        ({"items": BIT}, [[], [1], *but("array")], [["a"], [[]]]),
        ({"minItems": 1}, [[1], *but("array")], [[]]),
        ({"allOf": [arr(INT, maxItems=2), {"items": {"minimum": 0, "maximum": 9}}]}, [[1, 9]], [[-1], [10], [1, 1, 1]]),
        ({"allOf": [{"type": "array", "prefixItems": [BIT]}, {"prefixItems": [True, BOOL], "items": False}]},
         [[1], [0, True]], [[True], [1, 1], [1, True, 1]]),
    ],
    "properties": [
        (obj(a=BIT), [{}, {"a": 1}], [{"a": 2}, {"b": 1}, {"a": 1, "b": 1}]),
        (obj("a", a=BIT), [{"a": 0}], [{}, {"b": 0}]),
        (obj("b", a=BIT, b=BOOL), [{"b": True}, {"a": 1, "b": False}], [{"a": 1}, {"b": 1}, {"a": True, "b": True}]),
        (obj("a b c", a=BIT, b=BIT, c=BIT), [{"a": 0, "b": 1, "c": 0}], [{"a": 0, "b": 1}, {"c": 0}]),
        (obj("o", o=obj("p", p=BIT)), [{"o": {"p": 1}}], [{"o": {}}, {"o": {"p": 2}}, {"o": {"p": 1, "q": 1}}]),
        (obj("", a=True, b=False), [{}, {"a": 1}], [{"b": 1}, {"a": 1, "b": 1}]),
        ({"type": "object", "properties": {"a": False}, "additionalProperties": BIT, "maxProperties": 1}, [{}, {"b": 1}],
         [{"a": 1}, {"b": 2}]),
        ({"type": "object", "properties": {'q"\\': BIT, "é": BIT, "": BIT, "a b": BIT}, "required": ["", "é"], **CLOSED},
         [{"é": 1, "": 0}], [{"": 1}, {'q"\\': 2, "é": 1, "": 1}]),
        ({"type": "object", "properties": {"a\x01": BIT}, "required": ["a\x01"], **CLOSED}, [{"a\x01": 1}], [{"a": 1}, {}]),
        ({"properties": {"a": BIT}}, [{}, {"a": 1}, {"b": 5}, {"a": 0, "b": None}, *but("object")],
         [{"a": 2}, {"a": "x", "b": 1}]),
        ({"type": "object", "required": ["a"], "maxProperties": 1}, [{"a": 5}], [{}, {"b": 1}]),
        ({"type": "object", "required": ["a"], "additionalProperties": BIT, "maxProperties": 2}, [{"a": 1}, {"a": 1, "b": 0}],
         [{"a": 2}, {"b": 0}]),
        ({"required": ["x"]}, [{"x": None}, *but("object")], [{}, {"y": 1}]),
        ({"type": "object", "required": ["a", "b"], "minProperties": 2, "properties": {"a": BIT, "b": BIT}, **CLOSED},
         [{"a": 1, "b": 1}], [{"a": 1}]),
        ({"type": "object", "properties": {"a": BIT}, "required": ["a", "a"], **CLOSED}, [{"a": 1}], [{}]),
        ({"type": "object", "properties": {"minProperties": BIT, "pattern": BIT, "const": BIT}, **CLOSED},
         [{}, {"minProperties": 1, "const": 0}], [{"pattern": 5}]),
    ],
    "other properties": [
        ({"type": "object", **CLOSED}, [{}], [{"a": 1}]),
        ({"type": "object", "additionalProperties": BIT, "maxProperties": 2}, [{}, {"x": 1}, {"x": 1, "y": 0}],
         [{"x": 2}, {"x": 1, "y": 1, "z": 1}]),
        ({"type": "object", "additionalProperties": BIT, "minProperties": 1, "maxProperties": 1}, [{"x": 1}],
         [{}, {"x": 1, "y": 1}]),
        ({"type": "object", "properties": {"a": BIT}, "additionalProperties": BOOL, "maxProperties": 2, "required": ["a"]},
         [{"a": 1}, {"a": 1, "b": True}], [{"a": True}, {"a": 1, "b": 1}, {}]),
        ({"type": "object", "maxProperties": 0}, [{}], [{"a": 1}]),
        ({"type": "object", "maxProperties": 1.0, "additionalProperties": NULL}, [{}, {"a": None}], [{"a": None, "b": None}]),
        ({"type": "object", "patternProperties": {"^x": BIT}, **CLOSED, "maxProperties": 2},
         [{}, {"x": 1}, {"xa": 0, "xb": 1}], [{"a": 1}, {"x": 2}]),
        ({"type": "object", "patternProperties": {"^[^\"]$": BIT}, **CLOSED, "maxProperties": 1}, [{"a": 1}, {"\\": 1}],
         [{'"': 1}, {"ab": 1}]),
        ({"type": "object", "patternProperties": {"^a": BIT, "^b": BOOL}, **CLOSED, "maxProperties": 2},
         [{"a": 1, "bb": True}], [{"a": True}, {"b": 1}, {"c": 1}]),
        ({"type": "object", "patternProperties": {"^a": BIT}, "additionalProperties": NULL, "maxProperties": 2},
         [{"ab": 1, "c": None}], [{"ab": None}, {"c": 1}]),
        ({"type": "object", "properties": {"ab": {"maximum": 0}}, "patternProperties": {"^a": BIT}, **CLOSED,
         "maxProperties": 2, "required": ["ab"]}, [{"ab": 0}, {"ab": 0, "ac": 1}], [{"ab": 1}, {"ab": 0, "b": 0}]),
        ({"type": "object", "patternProperties": {"b$": False}, "additionalProperties": BIT, "maxProperties": 1},
         [{}, {"a": 1}], [{"b": 1}, {"ab": 1}]),
        ({"patternProperties": {"^a": BIT}}, [{}, {"a": 1}, {"b": "x"}, *but("object")], [{"a": 2}, {"ab": "x"}]),
        ({"additionalProperties": BIT}, [{}, {"a": 1}, *but("object")], [{"a": 2}, {"b": None}]),
    ],
    "anyOf": [
        ({"anyOf": [NULL, BIT]}, [None, 0, 1], [2, True, "a"]),
        ({"anyOf": [{**INT, "minimum": 5, "maximum": 9}, {**INT, "minimum": 0, "maximum": 2}]}, [0, 2, 5, 9], [3, 4, 10]),
        ({"type": "string", "anyOf": [{"maxLength": 1}, {"pattern": "^ab{2}$"}]}, ["a", "abb"], ["ab", "abbb", 1]),
        ({"anyOf": [obj("a", a=BIT), obj("b", b=BIT)]}, [{"a": 1}, {"b": 1}], [{}, {"a": 1, "b": 1}]),
        ({"properties": {"k": BIT}, "required": ["k"], "type": "object",
         "anyOf": [{"properties": {"v": NULL}, "required": ["v"]}, {"properties": {"w": NULL}, "required": ["w"]}],
         "maxProperties": 2}, [{"k": 1, "v": None}, {"k": 0, "w": None}], [{"k": 1}, {"v": None}, {"k": 1, "v": 1}]),
        ({"anyOf": [False, BOOL]}, [True], [None, 1]),
        ({"anyOf": [True, BOOL]}, ANY, []),
        ({"anyOf": [{"anyOf": [NULL, BOOL]}, BIT]}, [None, True, 1], [2, "a"]),
        ({"enum": [1, 2, 3], "anyOf": [{"maximum": 1}, {"minimum": 3}]}, [1, 3], [2]),
    ],
    "oneOf": [
        ({"oneOf": [NULL, BIT]}, [None, 1], [2, "a"]),
        ({"oneOf": [{"const": "a"}, {"const": "b"}]}, ["a", "b"], ["c"]),
        ({"oneOf": [obj("t", t={"const": "x"}, a=BIT), obj("t", t={"const": "y"}, b=BIT)]}, [{"t": "x", "a": 1}, {"t": "y"}],
         [{"t": "y", "a": 1}, {"t": "z"}]),
        ({"oneOf": [BOOL, False]}, [True], [1, None]),
        ({"oneOf": [arr(BIT, maxItems=1), obj(a=BIT)]}, [[], [1], {}, {"a": 1}], [1, [2], {"b": 1}]),
    ],
    "allOf": [
        ({"allOf": [{**INT, "minimum": 2}, {"maximum": 4}]}, [2, 4], [1, 5, "a"]),
        ({"allOf": [BOOL]}, [True], [1]),
        ({"allOf": [BOOL, True, {}]}, [False], [0]),
        ({"allOf": [{"enum": [1, 2, 3]}, {"enum": [2, 3, 4]}]}, [2, 3], [1, 4]),
        ({"allOf": [{"type": ["string", "null"]}, {"type": ["null", "integer"]}]}, [None], ["a", 1]),
        ({"type": "object",
         "allOf": [{"properties": {"a": BIT}, "required": ["a"]}, {"properties": {"b": BIT}, "required": ["b"]}],
         "maxProperties": 2}, [{"a": 1, "b": 0}], [{"a": 1}, {"b": 1}, {"a": 1, "b": 2}]),
        ({"allOf": [{"type": "object", "properties": {"a": BIT}}, {"properties": {"a": {"minimum": 1}}, **CLOSED}]},
         [{}, {"a": 1}], [{"a": 0}, {"b": 1}]),
        ({"type": "object", "properties": {"a": BIT}, "allOf": [{"properties": {"b": BIT}}], **CLOSED}, [{}, {"a": 1}],
         [{"b": 1}, {"a": 1, "b": 1}]),
        ({"allOf": [{"anyOf": [NULL, BIT]}, {"anyOf": [BOOL, {"maximum": 0}]}]}, [None, 0], [True, 1]),
        ({"maximum": 3, "allOf": [{"minimum": 1}], "type": "integer"}, [1, 3], [0, 4]),
        ({"allOf": [{"maxLength": 2}, {"minLength": 2}], "type": "string"}, ["ab"], ["a", "abc"]),
    ],
    "$ref": [
        ({"$ref": "#/$defs/x", "$defs": {"x": BIT}}, [1], [2, "a"]),
        ({"$ref": "#/definitions/x", "definitions": {"x": BIT}}, [1], [2, "a"]),
        ({"$ref": "#/$defs/x", "maximum": 0, "$defs": {"x": BIT}}, [0], [1]),
        ({"$ref": "#/$defs/a~1b~0c%25", "$defs": {"a/b~c%": BOOL}}, [True], [1]),
        ({"$ref": "#/$defs/x/items", "$defs": {"x": {"items": BOOL}}}, [True], [[True], 1]),
        ({"$ref": "#/components/schemas/x", "components": {"schemas": {"x": BOOL}}}, [True], [1]),
        ({"$ref": "#/components/x", "components": {"x": {"type": "string", "pattern": "^[^\"]$"}}}, ["a"], ['"', ""]),
        ({"$ref": "#/allOf/0", "allOf": [{"type": "integer", "minimum": 1, "maximum": 2}]}, [1], [3]),
        ({"$ref": "#here", "$defs": {"x": {"$anchor": "here", **BOOL}}}, [True], [1]),
        ({"$ref": "item", "$id": "http://example.com/root", "$defs": {"x": {"$id": "item", **BOOL}}}, [False], [0]),
        ({"$ref": "item#/$defs/y", "$id": "http://example.com/root", "$defs": {"x": {"$id": "item", "$defs": {"y": BIT}}}},
         [1], [True]),
        ({"$id": "http://example.com/r", "$ref": "#/$defs/x",
         "$defs": {"x": {"$id": "i", "$ref": "#/$defs/y", "$defs": {"y": BIT}}, "y": NULL}}, [1], [None]),
        (obj("n", n={"$ref": "#/$defs/x"}) | {"$defs": {"x": obj(n={"$ref": "#/$defs/x"})}}, [{"n": {}}, {"n": {"n": {}}}],
         [{}, {"n": {"m": 1}}]),
        ({**arr({"$ref": "#"}), "maxItems": 1}, [[], [[]], [[[]]]], [[1], [[], []]]),
        ({"$schema": "http://json-schema.org/draft-07/schema#", "$ref": "#/definitions/x", "$id": "http://example.com/x",
         "definitions": {"x": BIT}}, [1], [2]),
        ({"properties": {"$ref": BIT}, "type": "object", "required": ["$ref"], **CLOSED}, [{"$ref": 1}], [{"$ref": "a"}, {}]),
    ],
    "what asserts nothing": [
        ({"title": "t", "description": "d", "default": 3, "examples": [1], "deprecated": True, "$comment": "c", **BOOL},
         [True], [3]),
        ({"readOnly": True, "writeOnly": False, "x-of-mine": {"not": 1}, **NULL}, [None], [1]),
        ({"contentEncoding": "base64", "contentMediaType": "text/plain", "type": "string", "maxLength": 2}, ["a"], ["abc"]),
        ({"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "http://example.com/s", **BIT}, [1], [2]),
        ({"$schema": "http://json-schema.org/draft-04/schema#", "id": "http://example.com/s", **BIT}, [1], [2]),
        ({"default": {"minProperties": 2}, "examples": [{"pattern": "("}], **BIT}, [1], [2]),
        ({"$defs": {"unused": {"not": {}}}, **BIT}, [1], [2]),
    ],
}  # fmt: skip

LOOSE = {"format", "pattern as in JavaScript"}
"""Keywords that jsonschema checks less or differently: formats are annotations to it, and regular expressions are Python's."""

REFUSED: list[tuple[Any, str]] = [
    *(({key: value}, f'"{key}"') for key, value in {
        "not": BIT, "contains": BIT,
        "uniqueItems": True,
        "propertyNames": {"maxLength": 3}, "dependentRequired": {"a": ["b"]}, "dependentSchemas": {"a": BIT},
        "dependencies": {"a": ["b"]}, "unevaluatedProperties": False, "unevaluatedItems": False, "$dynamicRef": "#x",
        "$recursiveRef": "#", "divisibleBy": 2, "disallow": "string", "extends": BIT,
        "propertyDependencies": {"a": {"b": BIT}},
    }.items()),
    (obj("a", a=arr(BIT, uniqueItems=True)), '"uniqueItems"'),
    ({"anyOf": [NULL, {"not": NULL}]}, '"not"'),
    ({"$ref": "#/$defs/x", "$defs": {"x": {"if": BIT, "then": BIT}}}, '"if"'),
    (obj(a={"type": "string", "required": True}), "required"),
    ({"required": "a"}, "required"),
    ({"type": "object", "minProperties": 2}, "minProperties"),
    ({"type": "object", "minProperties": 2, "required": ["a", "a"]}, "minProperties"),
    ({"$ref": "#/x/y", "x": {"y": {"minProperties": 2}}}, "minProperties"),
    ({"$ref": "#/default", "default": {"minProperties": 2}}, "minProperties"),
    ({"minProperties": 1, "properties": {"a": BIT, "b": BIT}}, "minProperties"),
    ({"patternProperties": {"^a": BIT, "b$": BIT}}, "patternProperties"),
    ({"patternProperties": {"(": BIT}}, "pattern"),
    ({"oneOf": [{"minimum": 1}, {"maximum": 2}]}, "oneOf"),
    ({"oneOf": []}, "oneOf"), ({"anyOf": []}, "anyOf"), ({"anyOf": {}}, "anyOf"), ({"enum": []}, "enum"),
     ({"enum": "a"}, "enum"),
    ({"type": []}, "type"), ({"type": "any"}, "type"), ({"type": ["string", "text"]}, "type"), ({"type": 3}, "type"),
    ({"properties": []}, "properties"), ({"prefixItems": {}}, "prefixItems"), ({"format": 3}, "format"),
     ({"pattern": 3}, "pattern"),
    ({"minLength": -1}, "minLength"), ({"maxLength": "3"}, "maxLength"), ({"minItems": 1.5}, "minItems"),
     ({"maxItems": None}, "maxItems"),
    ({"minLength": 2**40}, "minLength"), ({"minimum": "1"}, "minimum"), ({"multipleOf": 0}, "multipleOf"),
     ({"multipleOf": -2}, "multipleOf"),
    ({"multipleOf": "2"}, "multipleOf"), ({"multipleOf": 2**40}, "multipleOf"), ({"multipleOf": 1e-30}, "multipleOf"),
    ({"allOf": [{"multipleOf": 65537}, {"multipleOf": 65539}]}, "multipleOf"),
    ({**INT, "minimum": 2**53 + 1}, "minimum"), ({**INT, "exclusiveMinimum": 2**53}, "exclusiveMinimum"),
    ({**INT, "maximum": 2**63 - 2}, "maximum"), ({**INT, "exclusiveMaximum": 2**63 - 1}, "exclusiveMaximum"),
    ({**INT, "minimum": 2**70}, "minimum"), ({"type": "number", "maximum": 1e300}, "maximum"),
    ({**INT, "minimum": 1 - 2**63}, "minimum"), ({**INT, "minimum": -(2**63)}, "minimum"),
     ({**INT, "exclusiveMinimum": -(2**63)}, "exclusiveMinimum"),
    ({**INT, "maximum": -(2**70)}, "maximum"), ({"patternProperties": {"<": BIT, "\\<": BOOL}}, "patternProperties"),
    ({**INT, "minimum": 3, "maximum": 2}, "minimum"), ({"const": 2**53 + 1}, "const"), ({"enum": [1, [2**64 - 1]]}, "enum"),
    ({"const": "a\x00b"}, "const"), ({"enum": ["x", {"y": "\x7f"}]}, "enum"),
    *(({"type": "string", "pattern": pattern}, "pattern") for pattern in (
        "a\\x00b", "^\\x7f$", "[\\x01-\\x07]", "\\cA", "\\v", "[]", "[^]", "a[]b]", "[a", "(", "(?=a)", "(?!a)", "(?<=a)b",
        "(a)\\1", "\\bword",
        "(?x) a", "(?-u:[^a])", "a^b", "\\k<a>", "*",
    )),
    ({"type": "object", "propertyNames": {"type": "string", "maxLength": 2}}, "propertyNames"),
    ({"type": "object", "propertyNames": {"type": "integer"}}, "propertyNames"),
    ({"type": "object", "unevaluatedProperties": False}, "unevaluatedProperties"),
    ({"type": "array", "contains": BIT, "minContains": 0, "maxContains": 2}, "contains"),
    ({"if": BIT, "else": BOOL}, "if"), ({"$dynamicRef": "#x"}, "$dynamicRef"),
    ({"$ref": "#/$defs/none"}, "/$defs/none"), ({"$ref": "#none"}, "none"), ({"$ref": "other.json"}, "$ref"),
    ({"$ref": "http://example.com/x"}, "$ref"), ({"$schema": "http://example.com/mine"}, "$schema"), ({"$ref": 3}, "$ref"),
    ({"$ref": "i#/default", "$defs": {"x": {"$id": "i", "default": {"minProperties": 2}}}}, "$ref"),
    ({"$ref": "#/$defs/x", "$defs": {"x": {"properties": {"x": {"$ref": "#/$defs/x", "type": "object"}}}}}, "$ref"),
    ({"$schema": "http://json-schema.org/draft-07/schema#", "allOf": [{"$id": "http://a.example/b/", "$ref": "c"}]}, "$ref"),
]  # fmt: skip

ROWS = [pytest.param(*row, id=f"{keyword}-{n}") for keyword, rows in CASES.items() for n, row in enumerate(rows)]
SCHEMAS = [(schema, keyword in LOOSE) for keyword, rows in CASES.items() for schema, _, _ in rows]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TextEngine]:
    path = tiny_gguf.write(tmp_path_factory.mktemp("models") / "tiny.gguf", "llama", more=MORE)
    with running(path, context=256, parallel=32, queue=4096, kv_tokens=8192) as engine:
        yield engine


class Language:
    """The texts that a schema allows, byte for byte."""

    def __init__(self, schema: Any) -> None:
        source = grammars.to_llguidance(Constraint("json_schema", json.dumps(schema)))
        self._matcher = LLMatcher(BYTES, source, log_level=0)
        assert not self._matcher.is_error() and not self._matcher.get_grammar_warnings()

    def takes(self, instance: Any) -> bool:
        matcher = self._matcher.deep_copy()
        tokens = BYTES.tokenize_str(json.dumps(instance, ensure_ascii=False))
        return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


def valid(schema: Any, instance: Any) -> bool:
    return jsonschema.Draft202012Validator(schema).is_valid(instance)


def draw(engine: TextEngine, schema: Any, seed: int) -> Answer:
    """Request an answer, sampled wildly."""
    sampling = SamplingParams(
        temperature=3.0, top_k=0, top_p=1.0, min_p=0.0, max_tokens=CUT, seed=seed, logit_bias=ENDS,
        constraint=Constraint("json_schema", json.dumps(schema)),
    )  # fmt: skip
    answer = Answer()
    engine.submit([BOS, *range(100, 108)], sampling, answer)
    return answer


def complete(answer: Answer) -> bool:
    """Return False for an answer that was cut; assert that there is no third way to end."""
    assert answer.reason in ("stop", "length"), answer.last
    assert answer.reason == "stop" or len(answer.tokens) == CUT
    return answer.reason == "stop"


@pytest.mark.parametrize(("schema", "good", "bad"), ROWS)
def test_a_schema_takes_what_is_valid_and_nothing_else(schema: Any, good: list[Any], bad: list[Any]) -> None:
    language = Language(schema)
    assert [instance for instance in good if not language.takes(instance)] == []
    assert [instance for instance in bad if language.takes(instance)] == []


def test_the_cases_are_what_another_validator_says() -> None:
    checked = 0
    for keyword, rows in CASES.items():
        for schema, good, bad in rows:
            if keyword in LOOSE or _is_of_an_older_draft(schema):
                continue
            assert [instance for instance in good if not valid(schema, instance)] == [], schema
            assert [instance for instance in bad if valid(schema, instance)] == [], schema
            checked += len(good) + len(bad)
    assert checked > 1000


def _is_of_an_older_draft(schema: Any) -> bool:
    return isinstance(schema, dict) and (
        isinstance(schema.get("items"), list)
        or isinstance(schema.get("exclusiveMinimum"), bool)
        or "draft-0" in str(schema.get("$schema"))
    )


@pytest.mark.parametrize(("schema", "keyword"), REFUSED, ids=[json.dumps(schema)[:70] for schema, _ in REFUSED])
def test_what_cannot_be_enforced_is_refused_with_its_keyword(engine: TextEngine, schema: Any, keyword: str) -> None:
    sources = [("json_schema", json.dumps(schema)), ("lark", f'start: "x" %json {json.dumps(schema)} "y"')]
    for kind, source in sources:
        with pytest.raises(InvalidField) as caught:
            engine.prepare(Constraint(kind, source, "response_format"))  # type: ignore[arg-type]
        assert keyword in caught.value.reason
        assert "not valid JSON" not in caught.value.reason and "\n" not in caught.value.reason


@pytest.mark.parametrize(
    "source", ['{"maximum": 1e999}', '{"const": NaN}', '{"const": 1' + "0" * 400 + "}", '{"a": 1} {}', "{", "{'a': 1}"]
)
def test_what_is_no_json_is_refused(engine: TextEngine, source: str) -> None:
    with pytest.raises(InvalidField, match="not valid JSON"):
        engine.prepare(Constraint("json_schema", source))


def test_keywords_are_known_however_they_are_spelt(engine: TextEngine) -> None:
    for source in (r'{"\u006dinProperties": 2}', r'{"$ref": "#\/x", "x": {"minPr\u006fperties" : 3}}'):
        with pytest.raises(InvalidField, match="minProperties"):
            engine.prepare(Constraint("json_schema", source))


@pytest.mark.parametrize("depth", [60, 200, 450, 900, 990, 100_000])
def test_depth_is_no_danger(engine: TextEngine, depth: int) -> None:
    source = '{"items": ' * depth + "{}" + "}" * depth
    if depth < 100:
        engine.prepare(Constraint("json_schema", source))
        return
    with pytest.raises(InvalidField, match=r"recursion|too deeply"):
        engine.prepare(Constraint("json_schema", source[: bounds.LONGEST]))


def test_hundreds_of_schemas_hold_the_answers_of_a_wild_model(engine: TextEngine) -> None:
    answers = [(schema, loose, draw(engine, schema, seed)) for schema, loose in SCHEMAS for seed in range(3)]
    whole = [(schema, loose, answer) for schema, loose, answer in answers if complete(answer)]
    for schema, loose, answer in whole:
        instance = json.loads(answer.text)
        assert Language(schema).takes(instance) or "." in answer.text or "e" in answer.text.lower(), (schema, answer.text)
        if not loose and not _is_of_an_older_draft(schema):
            assert valid(schema, instance), (schema, answer.text)
    assert len(SCHEMAS) > 200
    assert len(whole) > 0.9 * len(answers)
    assert len({json.dumps(schema) for schema, _, _ in whole}) > 0.95 * len(SCHEMAS)


def test_what_a_tool_of_an_old_draft_requires_is_left_out() -> None:
    """A property there has `required` itself; tools that are not strict are not refused for that."""
    tool = {"type": "object", "properties": {"a": {"type": "string", "required": True}}, "required": ["a"]}
    assert relaxed(tool) == {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}


QUARTERS = st.integers(-20, 20).map(lambda n: n / 4)
VALUES = from_schema({"enum": [None, True, 0, 1, 2.5, "", "a", 'q"', [1], []]})
LEAVES: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from([NULL, BOOL, BIT]),
    st.builds(
        lambda low, more: {"type": "string", "minLength": low, "maxLength": low + more}, st.integers(0, 2), st.integers(0, 3)
    ),
    st.builds(
        lambda pattern, most: {"type": "string", "pattern": pattern, "maxLength": most},
        st.sampled_from(["^a+b?$", "b", '^[^"]*$', "^[^a\\\\]{1,2}$", "^(x|yz)?$", "^[ -~]+$", "^\\d\\w$", "^q|r$"]),
        st.integers(2, 4),
    ),
    st.builds(lambda low, more: {**INT, "minimum": low, "maximum": low + more}, st.integers(-120, 120), st.integers(0, 150)),
    st.builds(lambda low, more: {**INT, "exclusiveMinimum": low, "maximum": low + more}, QUARTERS, st.integers(1, 30)),
    st.builds(
        lambda low, more: {"type": "number", "exclusiveMinimum": low, "maximum": low + more},
        QUARTERS,
        st.sampled_from([0.25, 0.5, 1, 7]),
    ),
    st.builds(
        lambda low, more: {"type": "number", "minimum": low - more, "exclusiveMaximum": low},
        QUARTERS,
        st.sampled_from([0.25, 0.5, 1, 7]),
    ),
    st.builds(
        lambda step: {"type": "number", "multipleOf": step, "minimum": 0, "maximum": 40},
        st.sampled_from([0.5, 1.5, 3, 7]),
    ),
    st.builds(lambda values: {"enum": values}, st.lists(VALUES, min_size=1, max_size=3)),
    st.builds(lambda value: {"const": value}, VALUES),
)
NAMES = st.sampled_from(["a", "b", "ab", "x y", 'q"', "é", ""])


def _compound(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def record(properties: dict[str, Any], required: int) -> Any:
        return obj() | {"properties": properties, "required": sorted(properties)[:required]}

    return st.one_of(
        st.builds(record, st.dictionaries(NAMES, parts, max_size=3), st.integers(0, 3)),
        st.builds(
            lambda items, low, more: arr(items, minItems=low, maxItems=low + more), parts, st.integers(0, 1), st.integers(0, 2)
        ),
        st.builds(lambda options: {"anyOf": options}, st.lists(parts, min_size=1, max_size=3)),
    )


WHOLE = st.recursive(LEAVES, _compound, max_leaves=6)


def instances(schema: Any) -> st.SearchStrategy[Any]:
    """Return a strategy for valid instances; hypothesis-jsonschema makes no objects with the current hypothesis."""
    if "anyOf" in schema:
        return st.one_of([instances(option) for option in schema["anyOf"]])
    if schema.get("type") == "array":
        return st.lists(instances(schema["items"]), min_size=schema["minItems"], max_size=schema["maxItems"])
    if schema.get("type") == "object":
        parts = {name: instances(part) for name, part in schema["properties"].items()}
        required = {name: parts.pop(name) for name in schema["required"]}
        objects = st.fixed_dictionaries(required, optional=parts)
        return objects.map(lambda each: {name: each[name] for name in schema["properties"] if name in each})
    return from_schema(schema)


def plain(instance: Any) -> bool:
    """Return True for an instance with one spelling and reading only: plain letters, no 2.0, few digits."""
    if isinstance(instance, str):
        return instance.isascii() and instance.isprintable()
    if isinstance(instance, float):
        return not instance.is_integer() and (4 * instance).is_integer()
    if isinstance(instance, dict):
        instance = list(instance.values())
    return all(map(plain, instance)) if isinstance(instance, list) else True


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.data())
def test_any_schema_takes_what_is_valid_and_nothing_else(engine: TextEngine, data: st.DataObject) -> None:
    schema, other = data.draw(WHOLE), data.draw(WHOLE)
    try:
        engine.prepare(Constraint("json_schema", json.dumps(schema), "schema"))
    except InvalidField as error:
        assert error.field == "schema"
        return
    answers = [draw(engine, schema, seed) for seed in range(3)]
    language = Language(schema)
    for instance in data.draw(st.lists(instances(schema), min_size=1, max_size=4)):
        assert valid(schema, instance)
        assert language.takes(instance) or not plain(instance)
    for instance in data.draw(st.lists(instances(other), max_size=4)):
        assert not language.takes(instance) or valid(schema, instance)
    for answer in answers:
        assert not complete(answer) or valid(schema, json.loads(answer.text))


def test_most_schemas_are_neither_refused_nor_cut(engine: TextEngine) -> None:
    """Else the test above would prove little."""
    ends: list[bool] = []

    @settings(max_examples=60, database=None, derandomize=True)
    @given(WHOLE)
    def count(schema: Any) -> None:
        try:
            ends.append(complete(draw(engine, schema, 0)))
        except InvalidField:
            ends.append(False)

    count()
    assert sum(ends) > 0.8 * len(ends) > 40
