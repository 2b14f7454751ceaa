"""What must not stop a server or hold up its other clients: bodies, one for each way that one once did.

Each is small to write down and large, deep or endless to whoever handles it without a bound.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support import damaged_gguf, tiny_gguf

MIB = 2**20
LARGE = 8_000_000
"""Bytes just below the largest body."""


@dataclass(frozen=True)
class Input:
    """A body for a path, made when it is wanted; `refused`: the answer is a 4xx, else it may be one or 200; `failing`: it is a
    failure of any kind that says why."""

    name: str
    path: str
    body: Callable[[], Any]
    refused: bool = False
    failing: bool = False

    def content(self) -> bytes:
        body = self.body()
        return body if isinstance(body, bytes) else json.dumps(body).encode()


def chat(**more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4, **more}


def said(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 4}


def prompt(text: Any, **more: Any) -> dict[str, Any]:
    return {"prompt": text, "max_tokens": 4, **more}


def response(**more: Any) -> dict[str, Any]:
    return {"input": "Hi", "max_output_tokens": 16, "store": False, **more}


def tool(name: str, **schema: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": schema or {"type": "object", "properties": {}}}}


def calls(count: int) -> list[dict[str, Any]]:
    pairs = (
        (
            {"type": "function_call", "call_id": f"c{i}", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": f"c{i}", "output": "x"},
        )
        for i in range(count // 2)
    )
    return [{"role": "user", "content": "Hi"}, *(item for pair in pairs for item in pair), {"role": "user", "content": "Hi"}]


def nested(depth: int, opening: str = '{"a":', inner: str = "1", closing: str = "}") -> str:
    return opening * depth + inner + closing * depth


def schema(value: Any) -> dict[str, Any]:
    return chat(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": value}})


def doubling(depth: int) -> dict[str, Any]:
    """A schema whose references, replaced by what they refer to, are 2**depth schemas."""
    both = {f"d{i}": {"type": "array", "prefixItems": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(depth)}
    return {"$defs": {**both, f"d{depth}": {"type": "integer"}}, "$ref": "#/$defs/d0"}


def deep_schema(depth: int) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "integer"}
    for _ in range(depth):
        found = {"type": "object", "properties": {"a": found}}
    return found


def texts() -> Iterator[Input]:
    for name, text in {
        "blanks": " " * LARGE,
        "letters without a break": "a" * LARGE,
        "newlines": "\n" * LARGE,
        "words": "word " * (LARGE // 5),
        "digits": "7" * LARGE,
        "emoji": "\U0001f600" * (LARGE // 12),
        "control tokens": "<|im_start|>" * (LARGE // 12),
    }.items():
        for path, body in (
            ("/v1/completions", prompt(text)),
            ("/v1/chat/completions", said(text)),
            ("/tokenize", {"content": text, "with_pieces": True}),
        ):
            yield Input(f"{path}: {LARGE} bytes of {name}", path, lambda body=body: body, path != "/tokenize")
    many = [{"role": ("user", "assistant")[i % 2], "content": "Hi"} for i in range(30_001)]
    yield Input("30,001 messages", "/v1/chat/completions", lambda: {"messages": many, "max_tokens": 4})
    yield Input("1.5 million prompts", "/v1/completions", lambda: prompt(["a"] * 1_500_000), True)
    yield Input("prompts of one token", "/v1/completions", lambda: prompt([[5]] * 1_000_000), True)
    yield Input("tokens to detokenize", "/detokenize", lambda: {"tokens": [5] * 2_500_000})
    yield Input("letters, not too many", "/v1/completions", lambda: prompt("a" * 40_000))


def numbers() -> Iterator[Input]:
    for value in (2**31 - 1, 2**31, 2**63, 10**30):
        for field in ("penalty_window", "top_k", "n", "best_of", "max_tokens", "dry_penalty_last_n", "min_tokens", "seed"):
            body = prompt("Hi", repetition_penalty=1.1, stop=list(" etaoin"), **{"max_tokens": 4, field: value})
            yield Input(f"{field}: {value}", "/v1/completions", lambda body=body: body)
    yield Input(
        "num_ctx", "/api/generate", lambda: {"prompt": "Hi", "stream": False, "options": {"num_ctx": 10**12, "num_predict": 4}}
    )
    yield Input("biases", "/v1/completions", lambda: prompt("Hi", logit_bias={str(i): 1 for i in range(49_152)}))


def lists() -> Iterator[Input]:
    yield Input("truncation: auto", "/v1/responses", lambda: response(input=calls(20_000), truncation="auto"))
    items = [{"role": "user", "content": "word " * 20}] * 20_000
    yield Input("truncation of messages", "/v1/responses", lambda: response(input=items, truncation="auto"))
    references = [{"type": "item_reference", "id": f"msg_{i}"} for i in range(1_000)]
    yield Input("item references", "/v1/responses", lambda: response(input=references), True)
    yield Input("function_call items", "/v1/responses", lambda: response(input=calls(40_000)))
    yield Input("tool names", "/v1/chat/completions", lambda: chat(tools=[tool(f"tool_{i}") for i in range(20_000)]))
    same = [tool("tool")] * 20_000
    yield Input("tools of one name", "/v1/chat/completions", lambda: chat(tools=same), True)
    yield Input("stop strings", "/v1/chat/completions", lambda: chat(stop=[f"stop{i}" for i in range(200_000)]), True)
    yield Input("a long stop string", "/v1/chat/completions", lambda: chat(stop=["x" * LARGE]))
    yield Input("a long model name", "/v1/chat/completions", lambda: chat(model="m" * LARGE))
    yield Input("fields nobody knows", "/v1/chat/completions", lambda: chat(**{f"field{i}": i for i in range(300_000)}))


def languages() -> Iterator[Input]:
    grammars = {
        "newlines": "start: /a/" + "\n" * 20_000,
        "alternatives": "start: " + " | ".join(f'"word{i}"' for i in range(10_000)),
        "repetitions": "start: a{1000}\na: b{1000}\nb: c{1000}\nc: /[a-z]/",
        "rules": "start: r0\n" + "\n".join(f"r{i}: r{i + 1} r{i + 1}" for i in range(2_000)) + '\nr2000: "x"',
        "parentheses": "start: " + "(" * 20_000 + '"x"' + ")" * 20_000,
        "left recursion": "start: start start | " + '"x"',
    }
    for name, text in grammars.items():
        body = chat(response_format={"type": "grammar", "grammar": text}, lark=text, structured_outputs={"grammar": text})
        yield Input(f"Lark: {name}", "/v1/chat/completions", lambda body=body: body)
    for name, pattern in {
        "repetitions": "(a{1,1000}){1,1000}",
        "three of them": "((a{1,999}){1,999}){1,999}",
        "classes": r"\p{L}" * 2_000,
        "an open class": r"\p{" * 50_000,
        "groups": "(" * 20_000 + "a" + ")" * 20_000,
        "alternatives": "|".join(f"w{i}" for i in range(50_000)),
        "stars": "(a*)*" * 1_000 + "b",
        "dots": ".*a.{200}" * 20,
    }.items():
        yield Input(f"regex: {name}", "/v1/chat/completions", lambda pattern=pattern: chat(guided_regex=pattern, regex=pattern))
    for name, value in {
        "doubling references": doubling(40),
        "depth": deep_schema(150),
        "a long enum": {"enum": [f"value {i}" for i in range(100_000)]},
        "alternatives": {"anyOf": [{"const": f"c{i}"} for i in range(10_000)]},
        "alternatives of objects": {"anyOf": [{"type": "object", "properties": {f"p{i}": {}}} for i in range(10_000)]},
        "properties": {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(20_000)}},
        "items": {"type": "array", "minItems": 10**9, "items": {"type": "integer"}},
        "length": {"type": "string", "minLength": 10**9},
        "a pattern": {"type": "string", "pattern": "^(a{1,1000}){1,1000}$"},
        "a circle": {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
        "multipleOf": {"type": "number", "multipleOf": 1e-300},
    }.items():
        yield Input(f"schema: {name}", "/v1/chat/completions", lambda value=value: schema(value))


def deep() -> Iterator[Input]:
    text = nested(5_000)
    for name, body in {
        "arguments": chat()
        | {
            "messages": [
                {"role": "user", "content": "Hi"},
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": text}}],
                },
                {"role": "tool", "tool_call_id": "c", "content": "x"},
                {"role": "user", "content": "Hi"},
            ]
        },
        "template variables that replace ours": chat(
            chat_template_kwargs={"messages": [], "self": 1, "tools": 7, "raise_exception": 1}
        ),
    }.items():
        yield Input(name, "/v1/chat/completions", lambda body=body: body)
    for name, fragment in {"objects": text, "lists": nested(100_000, "[", "1", "]")}.items():
        body = b'{"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4, "metadata": ' + fragment.encode() + b"}"
        yield Input(f"nested {name}", "/v1/chat/completions", lambda body=body: body)
    tools = json.dumps(chat(tools=[tool("f", a="NESTED")])).replace('"NESTED"', text).encode()
    yield Input("a nested schema", "/v1/chat/completions", lambda: tools)


LATER = "{% if messages | length > 3 %}BODY{% endif %}{{ messages[0].content }}"
"""A template that is endless in long conversations only, so that its load does not show it."""

LOOPS = "{% for i in range(99999) %}{% for j in range(99999) %}{{ i }}{% endfor %}{% endfor %}"
TEMPLATES = {
    "template-loops": LATER.replace("BODY", LOOPS),
    "template-product": LATER.replace("BODY", "{{ 'a' * 10**10 }}"),
    "template-at-once": LOOPS,
}


def models(folder: Path) -> str:
    """Write damaged files, and sound ones with endless templates, to the folder; return the registry that has them."""
    damage = damaged_gguf.SHOWN | damaged_gguf.TRIED
    paths = {f"damaged-{i}": damaged_gguf.write(folder / f"{i}.gguf", *each[:2]) for i, each in enumerate(damage.values())}
    for name, template in TEMPLATES.items():
        paths[name] = tiny_gguf.write(folder / f"{name}.gguf", "llama", template=template)
    entries = ({"id": name, "description": name, "source": {"kind": "file", "path": str(path)}} for name, path in paths.items())
    return json.dumps({"models": list(entries)})


def files() -> Iterator[Input]:
    for i, name in enumerate(damaged_gguf.SHOWN | damaged_gguf.TRIED):
        yield Input(f"file: {name}", "/models/load", lambda i=i: {"model_id": f"damaged-{i}"}, failing=True)
    long = [{"role": ("user", "assistant")[i % 2], "content": "Hi"} for i in range(5)]
    for name in TEMPLATES:
        yield Input(name, "/v1/chat/completions", lambda name=name: {"model": name, "messages": long}, True)


def everything() -> Iterator[Input]:
    return itertools.chain(texts(), numbers(), lists(), languages(), deep(), files())
