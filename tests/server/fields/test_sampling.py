"""Sampling fields of every dialect: whole numbers, the edges of ranges, what reaches the engine, and the model's defaults."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, get_args

import msgspec
import pytest

from locallab.engine.request import SAMPLERS, SamplingParams
from locallab.errors import InvalidField
from locallab.server.dialects.anthropic.request import MessagesBody
from locallab.server.dialects.assistant.request import AssistantBody
from locallab.server.dialects.llamacpp.request import LlamaCompletionBody
from locallab.server.dialects.llamacpp.tokens import DetokenizeBody
from locallab.server.dialects.native.generate import GenerateBody
from locallab.server.dialects.ollama.request import OllamaChatBody
from locallab.server.dialects.openai.chat import ChatBody
from locallab.server.dialects.openai.completions import CompletionBody
from locallab.server.dialects.openai.embeddings import EmbeddingsBody
from locallab.server.dialects.openai.rerank import RerankBody
from locallab.server.dialects.responses.request import ResponsesBody
from locallab.server.fields.body import RANGES, parse, whole
from locallab.server.fields.sampling import Sampling
from tests.support.fake_engine import N_VOCAB
from tests.support.http_server import Served

MESSAGES = [{"role": "user", "content": "hi"}]

BODIES: dict[type[msgspec.Struct], dict[str, Any]] = {
    ChatBody: {"messages": MESSAGES},
    CompletionBody: {"prompt": "hi"},
    GenerateBody: {"prompt": "hi"},
    LlamaCompletionBody: {"prompt": "hi"},
    AssistantBody: {"prompt": "hi"},
    MessagesBody: {"messages": MESSAGES},
    ResponsesBody: {"input": "hi"},
    OllamaChatBody: {"messages": MESSAGES},
    EmbeddingsBody: {"input": "hi"},
    RerankBody: {"query": "hi", "documents": ["hi"]},
    DetokenizeBody: {"tokens": [1]},
}


def integers(kind: type[msgspec.Struct]) -> list[tuple[str, ...]]:
    """Return the paths of all integer fields of a body, in its own structs too."""
    found: list[tuple[str, ...]] = []
    for field in msgspec.structs.fields(kind):
        types = [part for each in (field.type, *get_args(field.type)) for part in (each, *get_args(each))]
        if int in types and list not in [getattr(each, "__origin__", None) for each in types]:
            found.append((field.encode_name,))
        for each in types:
            if isinstance(each, type) and issubclass(each, msgspec.Struct):
                found += [(field.encode_name, *path) for path in integers(each)]
    return found


WHOLE = [(kind, path) for kind in BODIES for path in integers(kind)]


@pytest.mark.parametrize(("kind", "path"), WHOLE, ids=lambda each: each.__name__ if isinstance(each, type) else ".".join(each))
def test_a_whole_number_may_have_a_point(kind, path):
    def body(text: str) -> bytes:
        fields: Any = float(text)
        for name in reversed(path):
            fields = {name: fields}
        return msgspec.json.encode({**BODIES[kind], **fields}).replace(b"1.0", text.encode())

    value: Any = parse(body("1.0"), kind)
    for name in path:
        value = getattr(value, name)
    assert value == 1 and type(value) is int
    with pytest.raises(InvalidField, match=path[-1]):
        parse(body("1.5"), kind)


def test_all_dialects_have_whole_numbers():
    assert {kind for kind, _ in WHOLE} == set(BODIES) - {DetokenizeBody}


def test_numbers_in_lists_are_whole_too():
    body = parse(b'{"prompt": "hi", "stop_token_ids": [1.0, 2, 3.0], "allowed_token_ids": [4.0], "top_k": 5.0}', GenerateBody)
    assert (body.stop_token_ids, body.allowed_token_ids, body.top_k) == ([1, 2, 3], [4], 5)
    with pytest.raises(InvalidField, match="stop_token_ids"):
        parse(b'{"prompt": "hi", "stop_token_ids": [1.0, 2.5]}', GenerateBody)
    assert parse(b'{"tokens": [1.0, 2.0]}', DetokenizeBody).tokens == [1, 2]
    assert whole([1.0, [2.0, [3.0]], "x", True]) == [1, [2, [3.0]], "x", True] and type(whole([True])[0]) is bool


def test_a_whole_number_reaches_the_engine(served: Served) -> None:
    for path, body in (
        ("/v1/completions", {"prompt": [72.0, 105.0], "max_tokens": 2.0}),
        ("/v1/messages", {"messages": MESSAGES, "max_tokens": 2.0, "thinking": {"type": "enabled", "budget_tokens": 1024.0}}),
        ("/api/chat", {"messages": MESSAGES, "stream": False, "options": {"num_predict": 2.0}}),
    ):
        answer = served.http.post(path, json=body)
        assert answer.status_code == 200, answer.text
    assert [params.max_tokens for _, params in served.engine.submitted] == [2, 2, 2]
    assert served.engine.submitted[0][0] == "Hi"


EDGES = [(name, edge) for name, (low, high, closed) in RANGES.items() for edge in (low if closed else 1e-9, high)]


PATHS = {CompletionBody: "/v1/completions", LlamaCompletionBody: "/completion", ChatBody: "/v1/chat/completions"}


@pytest.mark.parametrize(("name", "edge"), EDGES)
def test_the_edge_of_a_range_is_inside(served: Served, name: str, edge: float) -> None:
    for kind, path in PATHS.items():
        if name not in kind.__struct_fields__ or (name, kind) == ("logprobs", ChatBody):  # there it is a bool
            continue
        body = {**BODIES[kind], "max_tokens": 1, name: 10**18 if edge == math.inf else edge}
        answer = served.http.post(path, json={**body, "logprobs": True} if name == "top_logprobs" else body)
        assert answer.status_code == 200, (path, answer.text)


@pytest.mark.parametrize("name", RANGES)
def test_beyond_a_range_is_no_accident(served: Served, name: str) -> None:
    for number in ("1" + "0" * 400, "-1" + "0" * 400, "1e300", "-1e300", "1e999"):
        for path in PATHS.values():
            content = (
                f'{{"prompt": "hi", "messages": [{{"role": "user", "content": "hi"}}], "max_tokens": 1, "{name}": {number}}}'
            )
            assert served.http.post(path, content=content).status_code in (200, 400), (path, number)


def sampled(served: Served, **fields: Any) -> SamplingParams:
    answer = served.http.post("/v1/completions", json={"prompt": "hi", **fields})
    assert answer.status_code == 200, answer.text
    return served.engine.submitted[-1][1]


ASKED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "dry": (
        {
            "dry_multiplier": 0.8,
            "dry_base": 1.5,
            "dry_allowed_length": 3,
            "dry_penalty_last_n": -1,
            "dry_sequence_breakers": ["x"],
        },
        {
            "dry_multiplier": 0.8,
            "dry_base": 1.5,
            "dry_allowed_length": 3,
            "dry_penalty_last_n": -1,
            "dry_sequence_breakers": ("x",),
        },
    ),
    "a dry base that is none": ({"dry_base": 0}, {"dry_base": 1.75}),
    "xtc": ({"xtc_probability": 0.5, "xtc_threshold": 0.2}, {"xtc_probability": 0.5, "xtc_threshold": 0.2}),
    "sigma": ({"top_n_sigma": -1}, {"top_n_sigma": -1.0}),
    "dynamic temperature": ({"dynatemp_range": 0.5, "dynatemp_exponent": 2}, {"dynatemp_range": 0.5, "dynatemp_exponent": 2.0}),
    "mirostat": (
        {"mirostat": 2, "mirostat_tau": 4, "mirostat_eta": 0.2},
        {"mirostat": 2, "mirostat_tau": 4.0, "mirostat_eta": 0.2},
    ),
    "adaptive": ({"adaptive_target": 0.5, "adaptive_decay": 0.5}, {"adaptive_target": 0.5, "adaptive_decay": 0.5}),
    "names": ({"samplers": ["top-k", "temp", "typical_p", "minp"]}, {"samplers": ("top_k", "temperature", "typ_p", "min_p")}),
    "letters": ({"samplers": "edskypmxt"}, {"samplers": SAMPLERS}),
    "no samplers": ({"samplers": []}, {"samplers": ()}),
    "min_keep": ({"min_keep": 3}, {"min_keep": 3}),
    "min_tokens": ({"min_tokens": 3}, {"min_tokens": 3}),
    "allowed": ({"allowed_token_ids": [65, 66]}, {"allowed_token_ids": (65, 66)}),
    "bad words": ({"bad_words": ["no"]}, {"bad_words": ("no",)}),
    "include": ({"stop": "x", "include_stop_str_in_output": True}, {"stop": ("x",), "include_stop": True}),
    "time": ({"t_max_predict_ms": 500}, {"line_after_ms": 500}),
    "no time": ({"t_max_predict_ms": -1}, {"line_after_ms": 0}),
    "bias by id": ({"logit_bias": {"65": 1.5, "66": False}}, {"logit_bias": ((65, 1.5), (66, -math.inf))}),
    "bias by text": ({"logit_bias": {" word": -1}}, {"logit_bias": ((" word", -1.0),)}),
    "bias in pairs": (
        {"logit_bias": [[65, 1], ["66", 2.5], ["x", False]]},
        {"logit_bias": ((65, 1.0), ("66", 2.5), ("x", -math.inf))},
    ),
    "beams": ({"use_beam_search": False}, {}),
}


@pytest.mark.parametrize(("fields", "expected"), ASKED.values(), ids=ASKED)
def test_what_is_asked_reaches_the_engine(served: Served, fields: dict[str, Any], expected: dict[str, Any]) -> None:
    params = sampled(served, **fields)
    assert params == dataclasses.replace(SamplingParams(max_tokens=params.max_tokens), **expected)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "beams": ({"use_beam_search": True}, "use_beam_search"),
    "a sampler": ({"samplers": ["top_k", "infill"]}, "samplers"),
    "a letter": ({"samplers": "kz"}, "samplers"),
    "samplers as number": ({"samplers": 5}, "samplers"),
    "nothing allowed": ({"allowed_token_ids": []}, "allowed_token_ids"),
    "no token": ({"allowed_token_ids": [N_VOCAB]}, "allowed_token_ids"),
    "an empty word": ({"bad_words": ["x", ""]}, "bad_words"),
    "true": ({"logit_bias": [["x", True]]}, "logit_bias"),
    "a pair of three": ({"logit_bias": [[1, 1, 1]]}, "logit_bias"),
    "a bias of no token": ({"logit_bias": [[N_VOCAB, 1]]}, "logit_bias"),
    "too large": ({"logit_bias": [["x", 101]]}, "logit_bias"),
    "mirostat": ({"mirostat": 3}, "mirostat"),
    "a window": ({"penalty_window": 2**31}, "penalty_window"),
}


@pytest.mark.parametrize(("fields", "name"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_done_is_named(served: Served, fields: dict[str, Any], name: str) -> None:
    answer = served.http.post("/v1/chat/completions", json={"messages": MESSAGES, **fields})
    assert answer.status_code == 400 and answer.json()["error"]["param"].startswith(name), answer.text


def test_a_model_s_defaults_are_below_the_request(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    info = dataclasses.replace(
        served.engine.info, sampling={"temperature": 0.3, "top_k": 7, "samplers": ("top_k", "temperature")}
    )
    monkeypatch.setattr(served.engine, "info", info)
    assert (sampled(served).temperature, sampled(served).top_k, sampled(served).samplers) == (0.3, 7, ("top_k", "temperature"))
    assert (sampled(served, temperature=1).temperature, sampled(served, do_sample=False).temperature) == (1.0, 0.0)
    served.http.post("/v1/messages", json={"messages": MESSAGES, "max_tokens": 5})
    assert served.engine.submitted[-1][1].temperature == 0.3
    served.http.post("/api/chat", json={"messages": MESSAGES, "stream": False})
    assert served.engine.submitted[-1][1].top_k == 7


def test_every_range_is_of_a_field():
    names = {name for kind in BODIES for name in kind.__struct_fields__} | set(Sampling.__struct_fields__)
    assert set(RANGES) - names <= {"num_predict", "num_ctx", "max_output_tokens", "max_length", "dimensions", "top_n"}
