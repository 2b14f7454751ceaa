"""Where chats are likely to part, found for every template: exactly, and near enough to be worth a snapshot."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gguf
import pytest
from hypothesis import given
from hypothesis import strategies as st

from locallab.chat import ChatTemplate, Message, ToolCall
from locallab.chat.control_tokens import markup, pieces
from locallab.chat.known_templates import CHATML
from locallab.chat.tools import Tool
from locallab.chat.turn import ChatRequest, ReasoningOptions
from locallab.cli.doctor.cache import VocabularyModel
from locallab.engine.costs import StepCosts
from locallab.engine.prefix_tree import common_length
from locallab.engine.vocabulary import Vocabulary
from locallab.server.inference.prompt import boundaries, plan_chat, tokenize
from tests.support import dialect_requests, installed_clients, tiny_gguf
from tests.support.fake_engine import FIM
from tests.support.http_server import Serve
from tests.support.tiny_server import Tiny, tiny_server

LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set first = messages[0].content ~ '\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}{% for m in rest %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ first if loop.first }}{{ m.content | trim }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set system = messages[0].content ~ '\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}{% for m in rest %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}[INST] {{ system if loop.last }}{{ m.content }}[/INST]"
    "{% else %} {{ m.content | trim }}{{ eos_token }}{% endif %}{% endfor %}"
)
THINKS = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}"
    "{% endfor %}{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.index0 > ns.last %}"
    "<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
"""It drops the reasoning of earlier turns, so that a prompt is no prefix of the next turn's."""

TEMPLATES = {
    "chatml": CHATML,
    "llama3": LLAMA3,
    "gemma": GEMMA,
    "mistral": MISTRAL,
    "thinks": THINKS,
    "tools": dialect_requests.TEMPLATE,
}
CONTROL = (
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "[INST]",
    "[/INST]",
)
SYSTEM = Message("system", "You are a kind helper. Answer in one line, and never mention the number seven.")
TOOL = Tool("weather", "Of a place", {"type": "object", "properties": {"city": {"type": "string"}}})
CALL = ToolCall("call00001", "weather", '{"city": "Oslo"}')
NEAR = 16
"""Tokens between a boundary and the place where prompts part: a header, a merged token, what is not worth a snapshot."""

beginnings = st.sampled_from(["", " ", "\n", "\n\n", "7", ":", "é"])
ends = st.sampled_from(["", "<|im_end|>\n", "[INST] and so on " * 3])


def said(role: str, word: str) -> st.SearchStrategy[Message]:
    """A message whose text parts from those with another word, behind a beginning that a token may span."""
    return st.builds(lambda start, end: Message(role, f"{start}{word} {end}"), beginnings, ends)


def turns(n: int, user: str = "ask", assistant: str = "say") -> st.SearchStrategy[list[Message]]:
    pairs = [said("user", user), said("assistant", assistant)] * n
    return st.tuples(*pairs, said("user", user)).map(list)


@pytest.fixture(scope="module", params=TEMPLATES)
def template(request: pytest.FixtureRequest) -> ChatTemplate:
    return ChatTemplate(TEMPLATES[request.param], "<s>", "</s>")


@pytest.fixture(scope="module", params=["merges", "control tokens"])
def vocabulary(
    request: pytest.FixtureRequest, model_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Vocabulary]:
    """One in which ChatML alone has control tokens and whose tokens span letters, spaces and lines; one in which every
    template has them."""
    path = model_path
    if request.param == "control tokens":
        more = [(text, gguf.TokenType.CONTROL) for text in CONTROL]
        path = tiny_gguf.write(tmp_path_factory.mktemp("models") / "tiny.gguf", "llama", more=more)
    with contextlib.closing(Vocabulary(path)) as found:
        yield found


@pytest.fixture(scope="module")
def model(vocabulary: Vocabulary, template: ChatTemplate) -> VocabularyModel:
    return VocabularyModel(vocabulary, template, markup(vocabulary.info.control_tokens))


def prompt(model: VocabularyModel, messages: Sequence[Message], **more: Any) -> tuple[list[int], tuple[int, ...]]:
    """Return a chat's tokens and boundaries."""
    request = ChatRequest(messages=messages, **more)
    text = plan_chat(model, request).prompt
    tokens = tokenize(model.engine, pieces(text))
    return tokens, boundaries(model, request, text, tokens)


def check(found: tuple[list[int], tuple[int, ...]], other: list[int]) -> None:
    """Assert that the other prompt can be taken up near the place where it parts."""
    tokens, places = found
    common = common_length(tokens, other)
    snapshots = [at for at in (0, *places, len(tokens) - 1) if at <= common]
    assert common - snapshots[-1] <= NEAR, f"the prompts part at {common}, the boundaries are {places}"


@given(st.data(), st.integers(0, 2), st.integers(0, 2))
def test_another_conversation_with_the_system_prompt(model: VocabularyModel, data: st.DataObject, n: int, m: int) -> None:
    one, other = [SYSTEM, *data.draw(turns(n))], [SYSTEM, *data.draw(turns(m, "question", "tell"))]
    check(prompt(model, one, tools=(TOOL,)), prompt(model, other, tools=(TOOL,))[0])


@given(st.data(), st.integers(0, 2))
def test_another_last_message(model: VocabularyModel, data: st.DataObject, n: int) -> None:
    said_before = [SYSTEM, *data.draw(turns(n))]
    check(prompt(model, said_before), prompt(model, [*said_before[:-1], data.draw(said("user", "question"))])[0])


@given(st.data(), st.integers(0, 2))
def test_the_next_turn_whatever_the_answer_was(model: VocabularyModel, data: st.DataObject, n: int) -> None:
    so_far = [SYSTEM, *data.draw(turns(n))]
    answer = dataclasses.replace(data.draw(said("assistant", "say")), reasoning="because")
    check(prompt(model, so_far), prompt(model, [*so_far, answer, data.draw(said("user", "ask"))])[0])


@given(st.data())
def test_boundaries_ascend_inside_the_prompt(model: VocabularyModel, data: st.DataObject) -> None:
    messages = data.draw(st.lists(st.sampled_from(["system", "user", "assistant"]).flatmap(lambda r: said(r, "x")), min_size=1))
    continues = data.draw(st.booleans())
    tokens, places = prompt(model, messages, continues=continues, reasoning=ReasoningOptions(enabled=False))
    assert list(places) == sorted(set(places)) and all(0 < at < len(tokens) for at in places)


def test_after_a_tool_has_answered(model: VocabularyModel) -> None:
    """The next message of the user parts from the prompt where the turn began, if that drops the reasoning since."""
    called = Message("assistant", "", tool_calls=(CALL,), reasoning="I must look")
    so_far = [SYSTEM, Message("user", "ask"), called, Message("tool", "It rains.", "weather", (), CALL.id)]
    found = prompt(model, so_far, tools=(TOOL,))
    check(found, prompt(model, [*so_far, Message("assistant", "Rain."), Message("user", "Thanks")], tools=(TOOL,))[0])
    check(found, prompt(model, [SYSTEM, Message("user", "question")], tools=(TOOL,))[0])


def test_a_template_that_refuses_every_other_conversation(model_path: Path) -> None:
    """What cannot be found is left out; the chat is answered."""
    source = "{% if messages | length != 2 or messages[1].content != 'Hi' %}{{ raise_exception('no') }}{% endif %}" + CHATML
    with contextlib.closing(Vocabulary(model_path)) as vocabulary:
        model = VocabularyModel(vocabulary, ChatTemplate(source), markup(vocabulary.info.control_tokens))
        assert prompt(model, [SYSTEM, Message("user", "Hi")])[1] == ()


@pytest.mark.clients
def test_released_templates(model_path: Path) -> None:
    """In the embedded model's vocabulary, most of their markup is plain text."""
    with contextlib.closing(Vocabulary(model_path)) as vocabulary:
        for path in sorted(installed_clients.templates().glob("*.jinja")):
            template = ChatTemplate(path.read_text(), "<s>", "</s>")
            model = VocabularyModel(vocabulary, template, markup(vocabulary.info.control_tokens))
            if path.stem == "fireworks-ai-llama-3-firefunction-v2":  # it refuses every conversation
                continue
            so_far = [SYSTEM, Message("user", "ask"), Message("assistant", "say"), Message("user", "more")]
            found = prompt(model, so_far)
            check(found, prompt(model, [SYSTEM, Message("user", "question")])[0])
            check(found, prompt(model, [*so_far[:-1], Message("user", "question")])[0])
            check(found, prompt(model, [*so_far, Message("assistant", "say"), Message("user", "ask")])[0])


USER = {"messages": [{"role": "system", "content": SYSTEM.content}, {"role": "user", "content": "hello there"}]}
CHATS: dict[str, dict[str, Any]] = {
    "/chat": USER,
    "/v1/chat/completions": {**USER, "n": 2},
    "/v1/responses": {"instructions": SYSTEM.content, "input": "hello there"},
    "/v1/messages": {"model": "any", "max_tokens": 9, "system": SYSTEM.content, "messages": USER["messages"][1:]},
    "/api/chat": {"model": "tiny:1b", **USER},
    "/api/v1/assistant/chat": {"prompt": "hello there"},
}
TEXTS: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": SYSTEM.content},
    "/completion": {"prompt": SYSTEM.content},
    "/infill": {"input_prefix": SYSTEM.content, "input_suffix": "end"},
}


@pytest.mark.parametrize("path", [*CHATS, *TEXTS])
@pytest.mark.parametrize("reuse", ["prefix", "snapshots"])
def test_every_dialect(serve: Serve, path: str, reuse: Any) -> None:
    """Only chats have them, and only where the model's memory cannot be cut."""
    with serve(engine={"fim": FIM}) as served:
        served.engine.info = dataclasses.replace(served.engine.info, reuse=reuse)
        assert served.http.post(path, json={**CHATS, **TEXTS}[path]).status_code == 200
        for text, params in served.engine.submitted:
            begins = [text.encode()[: at - 1 + len("<s>")].decode() for at in params.boundaries]
            if reuse == "prefix" or path in TEXTS:
                assert begins == []
            else:
                assert begins and begins[0].endswith("<|im_start|>user") and "hello" not in begins[0]
        assert len(served.engine.submitted) == CHATS.get(path, {}).get("n", 1)


@pytest.fixture(scope="module", params=["gemma3", "mamba", "lfm2"])
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tiny]:
    """A server whose model has a memory that cannot be cut. It restores whatever it can: so small a model computes a prompt
    as fast as that."""
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch, tiny_server(folder, architecture=request.param, cache_ram_mib=64) as served:
        patch.setattr(StepCosts, "pays", lambda *_: True)
        assert served.http.get("/models/current").json()["prefix_reuse"] == "snapshots"
        yield served


def messages(*texts: str) -> list[Message]:
    """Return a conversation: a system message, then users and assistants take turns."""
    roles = ["system", *["user", "assistant"] * len(texts)]
    return [Message(role, text) for role, text in zip(roles, texts, strict=False)]


def usage(tiny: Tiny, *texts: str) -> tuple[int, int]:
    """Return the tokens of a chat's prompt, and those of them that the cache had."""
    said = [{"role": message.role, "content": message.content} for message in messages(*texts)]
    found = tiny.post("/v1/chat/completions", messages=said, max_tokens=4)["usage"]
    return found["prompt_tokens"], found["prompt_tokens_details"]["cached_tokens"]


def until_user(tiny: Tiny, *texts: str) -> int:
    """Return the tokens of a conversation up to the next text of the user."""
    loaded = tiny.pool.current
    assert loaded is not None
    text = loaded.template.render(messages(*texts), add_generation_prompt=False) + "<|im_start|>user\n"
    return len(tokenize(loaded.engine, [text]))


def test_a_second_conversation_has_the_system_prompt(tiny: Tiny) -> None:
    system = "tell the truth and " + "nothing but " * 8
    usage(tiny, system, "who are you")
    shared = until_user(tiny, system)
    assert shared - NEAR <= usage(tiny, system, "what is this")[1] <= shared


def test_an_edited_answer_has_the_history_before_it(tiny: Tiny) -> None:
    talk = ["be brief and kind", "who are you", "a model of few words", "and what do you do"]
    before, _ = usage(tiny, *talk)
    total, cached = usage(tiny, *talk, "an edited answer", "go on")
    assert before - NEAR <= cached <= before < total


def test_an_edited_question_has_the_history_before_it(tiny: Tiny) -> None:
    talk = ["be blunt and quick", "who is there", "nobody at all"]
    usage(tiny, *talk, "why do you speak then")
    shared = until_user(tiny, *talk)
    assert shared - NEAR <= usage(tiny, *talk, "how can that be")[1] <= shared
