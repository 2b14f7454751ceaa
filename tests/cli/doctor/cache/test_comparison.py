from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from locallab.chat import ChatTemplate
from locallab.chat.control_tokens import markup
from locallab.cli.doctor.cache import Comparison, VocabularyModel, compare
from locallab.engine import SamplingParams, TextEngine
from locallab.engine.vocabulary import Vocabulary
from locallab.models import FileSource, ModelSpec
from locallab.pool import Loaded
from locallab.pool.memory import NO_MEMORY
from locallab.server.dialects.openai.chat import ChatBody
from locallab.server.fields.body import parse
from locallab.server.inference.prompt import prepare_chat
from locallab.settings import EngineSettings
from tests.support.dialect_requests import TEMPLATE

CHAT = "/v1/chat/completions"
TOOLS = [{"type": "function", "function": {"name": name}} for name in ("look", "go")]
SYSTEM = {"role": "system", "content": "Be kind. Today is 2026-11-28."}
HI = {"role": "user", "content": "Hi"}
THOUGHT = {"role": "assistant", "content": "Yes?", "reasoning_content": "greet"}
MORE = {"role": "user", "content": "Rain?"}
TALK = [SYSTEM, HI, THOUGHT, MORE]

texts = st.sampled_from(["", "a", "ab", "a b", "Hi <|im_end|> you", "2026-11-28", "Ünö 😀"]) | st.text(max_size=6)
messages = st.builds(dict, role=st.sampled_from(["system", "user", "assistant"]), content=texts)
bodies = st.builds(
    dict,
    messages=st.lists(messages, min_size=1, max_size=5),
    tools=st.permutations(TOOLS).flatmap(lambda tools: st.integers(0, 2).map(lambda n: tools[:n])),
    temperature=st.floats(0, 1),
    reasoning_effort=st.sampled_from(["none", "low", "high"]),
)
"""Bodies of few words, so that two of them often have much in common."""


@pytest.fixture(scope="module")
def model(model_path: Path) -> Iterator[VocabularyModel]:
    """The embedded model's vocabulary, with a template that writes reasoning, tools and options."""
    with contextlib.closing(Vocabulary(model_path)) as engine:
        yield VocabularyModel(engine, ChatTemplate(TEMPLATE), markup(engine.info.control_tokens))


@pytest.fixture(scope="module")
def loaded(model_path: Path) -> Iterator[Loaded]:
    """The same model with its weights, as a server has it."""
    engine = TextEngine(model_path, EngineSettings(context=512, parallel=1, gpu_layers=0, cache_ram_mib=0))
    spec = ModelSpec(id="embedded", source=FileSource(path=model_path), description="a test")
    try:
        yield Loaded(spec, engine, ChatTemplate(TEMPLATE), 0, NO_MEMORY, 0.0, markup(engine.info.control_tokens))
    finally:
        engine.close()


def prompt(loaded: Loaded, body: Any) -> list[int]:
    """The tokens of a chat body as its route makes them."""
    request = parse(json.dumps(body).encode(), ChatBody).request([])
    return list(asyncio.run(prepare_chat(loaded, request, SamplingParams())).jobs[0][0])


def of_chats(model: VocabularyModel, a: Any, b: Any) -> Comparison:
    return compare(model, (CHAT, CHAT), (a, b))


@given(bodies, bodies)
def test_what_is_shared_is_the_common_prefix_of_the_servers_prompts(
    model: VocabularyModel, loaded: Loaded, a: Any, b: Any
) -> None:
    found, one, two = of_chats(model, a, b), prompt(loaded, a), prompt(loaded, b)
    assert found.tokens == (len(one), len(two))
    assert found.shared == max(n for n in range(min(found.tokens) + 1) if one[:n] == two[:n])
    assert (found.kind == "same") == (one == two)


@given(bodies, bodies)
def test_a_field_that_is_named_is_one_at_which_the_bodies_differ(model: VocabularyModel, a: Any, b: Any) -> None:
    found = of_chats(model, a, b)
    if found.field is None:
        assert found.kind in ("same", "continued", "several")
    else:
        assert a[found.field.split("[")[0]] != b[found.field.split("[")[0]]
    assert "temperature" not in (found.field or "")
    assert ("temperature" in found.harmless) == (a["temperature"] != b["temperature"])


CASES: dict[str, tuple[Any, Any, str | None, str]] = {
    "the same": ({"messages": TALK}, {"messages": TALK, "seed": 1}, None, "same"),
    "a date": (
        {"messages": TALK},
        {"messages": [{**SYSTEM, "content": "Be kind. Today is 2026-11-29."}, *TALK[1:]]},
        "messages[0].content",
        "time",
    ),
    "reordered tools": (
        {"messages": TALK, "tools": TOOLS},
        {"messages": TALK, "tools": TOOLS[::-1]},
        "tools",
        "tools reordered",
    ),
    "dropped reasoning": (
        {"messages": TALK},
        {"messages": [SYSTEM, HI, {"role": "assistant", "content": "Yes?"}, MORE]},
        "messages[2].reasoning_content",
        "reasoning",
    ),
    "an edited answer": (
        {"messages": TALK},
        {"messages": [SYSTEM, HI, {**THOUGHT, "content": "No."}, MORE]},
        "messages[2].content",
        "answer",
    ),
    "spaces": (
        {"messages": TALK},
        {"messages": [{**SYSTEM, "content": " Be kind. Today is 2026-11-28."}, *TALK[1:]]},
        "messages[0].content",
        "whitespace",
    ),
    "the next turn": (
        {"messages": TALK[:2]},
        {"messages": [SYSTEM, HI, {"role": "assistant", "content": "Yes?"}, MORE]},
        None,
        "continued",
    ),
    "messages left out": (
        {"messages": [*TALK, THOUGHT, HI]},
        {"messages": [SYSTEM, *TALK[3:], THOUGHT, HI]},
        "messages[1]",
        "left out",
    ),
    "an option": (
        {"messages": TALK, "reasoning_effort": "low"},
        {"messages": TALK, "reasoning_effort": "high"},
        "reasoning_effort",
        "options",
    ),
}


@pytest.mark.parametrize(("a", "b", "field", "kind"), CASES.values(), ids=CASES)
def test_where_and_why(model: VocabularyModel, a: Any, b: Any, field: str | None, kind: str) -> None:
    found = of_chats(model, a, b)
    assert (found.field, found.kind) == (field, kind)
    assert kind != "same" or found.harmless == ("seed",)


OPENS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant><think>\n"
"""A template that leaves out the reasoning of earlier answers, and begins that of the next one."""


def test_a_template_that_drops_reasoning(model: VocabularyModel) -> None:
    drops = dataclasses.replace(model, template=ChatTemplate(OPENS))
    found = of_chats(drops, {"messages": TALK[:2]}, {"messages": TALK})
    assert (found.field, found.kind) == ("messages[2]", "template")
    assert "think" in found.after[0] and "think" not in found.after[1]


def test_the_text_around_the_place(model: VocabularyModel) -> None:
    a, b = ({"messages": [{"role": "user", "content": f"It was {word} then."}]} for word in ("red", "blue"))
    found = of_chats(model, a, b)
    assert found.before == "<user>It was"
    assert found.after == (" red then.\n<assistant>", " blue then.\n<assistant>")


def test_bodies_of_two_apis(model: VocabularyModel) -> None:
    chat, text = {"messages": [HI]}, {"prompt": "<user>Hi there"}
    found = compare(model, (CHAT, "/v1/completions"), (chat, text))
    assert (found.kind, found.field) == ("apis", None)
    assert found.before == "<user>Hi"
