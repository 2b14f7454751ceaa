"""The tables of fields: all that other makers publish is in them, and what each effect means for a request."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, get_origin, get_type_hints

import anthropic.types
import anthropic.types.beta
import msgspec
import ollama._types
import openai.types
import openai.types.chat
import openai.types.chat.completion_create_params
import openai.types.completion_create_params
import openai.types.responses.response_create_params
import pytest

from locallab.errors import InvalidField
from locallab.server.app import create_app
from locallab.server.dialects.anthropic.request import MessagesBody
from locallab.server.dialects.llamacpp.request import InfillBody, LlamaCompletionBody
from locallab.server.dialects.ollama.embed import OllamaEmbedBody, OllamaPromptBody
from locallab.server.dialects.ollama.models import PullBody, ShowBody
from locallab.server.dialects.ollama.request import OllamaChatBody, OllamaGenerateBody, Options
from locallab.server.dialects.openai.chat import ChatBody, StreamOptions
from locallab.server.dialects.openai.completions import CompletionBody
from locallab.server.dialects.openai.embeddings import EmbeddingsBody
from locallab.server.dialects.openai.rerank import RerankBody
from locallab.server.dialects.responses.request import ResponsesBody
from locallab.server.endpoint import Endpoint
from locallab.server.fields.body import parse
from locallab.server.fields.constraint import StructuredOutputs
from locallab.server.fields.table import Other, check_fields, metas, nested, others
from locallab.settings import ServerSettings
from tests.support.http_server import Served
from tests.support.openapi_check import Described

MESSAGES = [{"role": "user", "content": "hi"}]


def of(*typed: type) -> set[str]:
    return {name for each in typed for name in get_type_hints(each)}


def words(text: str) -> set[str]:
    return set(text.split())


VLLM = words("""
    use_beam_search top_k min_p repetition_penalty watermarking length_penalty stop_token_ids include_stop_str_in_output
    ignore_eos min_tokens skip_special_tokens spaces_between_special_tokens truncate_prompt_tokens truncation_side
    prompt_logprobs logprob_token_ids allowed_token_ids bad_words add_special_tokens response_format structured_outputs
    priority request_id session_id return_tokens_as_token_ids return_token_ids routed_experts_prompt_start
    return_token_offsets return_mm_kwargs cache_salt kv_transfer_params ec_transfer_params vllm_xargs repetition_detection
    thinking_token_budget stream_interval echo logits_processors guided_json guided_regex guided_choice guided_grammar
    structural_tag guided_decoding_backend guided_whitespace_pattern
""")
VLLM_CHAT = words("""
    include_reasoning add_generation_prompt continue_final_message documents chat_template chat_template_kwargs
    media_io_kwargs mm_processor_kwargs return_prompt_text reasoning_effort
""")
VLLM_STRUCTURED = words("""
    json regex choice grammar json_object structural_tag disable_any_whitespace disable_additional_properties
    disable_fallback whitespace_pattern
""")
LLAMA_CPP = words("""
    prompt temperature dynatemp_range dynatemp_exponent top_k top_p min_p n_predict n_indent n_keep n_cmpl n_cache_reuse
    stream stop typical_p repeat_penalty repeat_last_n presence_penalty frequency_penalty dry_multiplier dry_base
    dry_allowed_length dry_penalty_last_n dry_sequence_breakers xtc_probability xtc_threshold mirostat mirostat_tau
    mirostat_eta grammar json_schema seed ignore_eos logit_bias n_probs min_keep t_max_predict_ms id_slot cache_prompt
    return_tokens samplers timings_per_token return_progress sse_ping_interval post_sampling_probs response_fields lora
    top_n_sigma adaptive_target adaptive_decay t_max_prompt_ms n_discard backend_sampling verbose max_tokens
    grammar_lazy grammar_triggers grammar_type preserved_tokens
""")
LLAMA_CPP_CHAT = words("""
    chat_template_kwargs reasoning_effort reasoning_format reasoning_control generation_prompt parse_tool_calls
    parallel_tool_calls reasoning_budget_tokens thinking_budget_tokens reasoning_budget_message add_generation_prompt
    continue_final_message max_completion_tokens chat_format chat_parser reasoning_budget_start_tag reasoning_budget_end_tag
    reasoning_budget_end_tags n
""")

CHAT = of(openai.types.chat.completion_create_params.CompletionCreateParamsBase) | {"stream"}
PUBLISHED: dict[str, tuple[type, set[str]]] = {
    "OpenAI's chats": (ChatBody, CHAT),
    "OpenAI's stream options": (StreamOptions, of(openai.types.chat.ChatCompletionStreamOptionsParam)),
    "OpenAI's completions": (
        CompletionBody,
        of(openai.types.completion_create_params.CompletionCreateParamsBase) | {"stream"},
    ),
    "OpenAI's embeddings": (EmbeddingsBody, of(openai.types.EmbeddingCreateParams)),
    "OpenAI's Responses": (
        ResponsesBody,
        of(openai.types.responses.response_create_params.ResponseCreateParamsBase) | {"stream"},
    ),
    "Anthropic's messages": (
        MessagesBody,
        of(anthropic.types.message_create_params.MessageCreateParamsBase, anthropic.types.MessageCountTokensParams),
    ),
    "Anthropic's messages in beta": (
        MessagesBody,
        of(anthropic.types.beta.message_create_params.MessageCreateParamsBase) | {"stream"},
    ),
    "Ollama's options": (Options, set(ollama._types.Options.model_fields)),
    "Ollama's chats": (OllamaChatBody, set(ollama._types.ChatRequest.model_fields)),
    "Ollama's completions": (OllamaGenerateBody, set(ollama._types.GenerateRequest.model_fields)),
    "Ollama's embeddings": (OllamaEmbedBody, set(ollama._types.EmbedRequest.model_fields)),
    "Ollama's older embeddings": (OllamaPromptBody, set(ollama._types.EmbeddingsRequest.model_fields)),
    "Ollama's downloads": (PullBody, set(ollama._types.PullRequest.model_fields)),
    "Ollama's details": (ShowBody, set(ollama._types.ShowRequest.model_fields) | {"verbose"}),
    "vLLM's chats": (ChatBody, CHAT | VLLM | VLLM_CHAT),
    "vLLM's completions": (CompletionBody, VLLM | {"prompt_embeds"}),
    "vLLM's constraints": (StructuredOutputs, VLLM_STRUCTURED),
    "vLLM's embeddings": (EmbeddingsBody, words("truncate_prompt_tokens add_special_tokens priority request_id normalize")),
    "vLLM's rankings": (RerankBody, words("top_n truncate_prompt_tokens priority request_id")),
    "llama.cpp's completions": (LlamaCompletionBody, LLAMA_CPP),
    "llama.cpp's infill": (InfillBody, LLAMA_CPP | words("input_prefix input_suffix input_extra")),
    "llama.cpp's chats": (ChatBody, LLAMA_CPP - {"prompt"} | LLAMA_CPP_CHAT),
    "completions in OpenAI's shape of llama.cpp": (CompletionBody, LLAMA_CPP),
}


@pytest.mark.parametrize(("body", "published"), PUBLISHED.values(), ids=PUBLISHED)
def test_every_published_field_is_in_the_table(body: type, published: set[str]) -> None:
    assert len(published) > 1
    assert published - {"extra_headers"} - metas(body).keys() - others(body).keys() == set()


def bodies(served: Served) -> list[type]:
    """Return the bodies of all routes, and the structs in them."""
    routes = create_app(served.pool, ServerSettings(rate_limit=False)).routes
    endpoints = [each for each in routes if isinstance(each, Endpoint)]
    found = [each.contract.body for each in endpoints if each.contract.body and get_origin(each.contract.body) is None]
    return list(dict.fromkeys([*found, *(inner for body in found for inner in nested(body).values())]))


def table(served: Served) -> Iterator[tuple[type, str, Other]]:
    for body in bodies(served):
        yield from ((body, name, other) for name, other in others(body).items() if name not in metas(body))


def checked(body: type, **fields: Any) -> list[str]:
    return check_fields(msgspec.json.encode(fields), body)


def test_what_asks_for_nothing_is_taken_in_silence(served: Served) -> None:
    entries = list(table(served))
    assert len(entries) > 400
    for body, name, other in entries:
        for value in (None, *other.off):
            assert checked(body, **{name: value}) == [], (body, name, value)


def test_each_effect(served: Served) -> None:
    for body, name, other in table(served):
        if other.effect == "refused":
            with pytest.raises(InvalidField, match=f"^{name}: is not supported: ") as refused:
                checked(body, **{name: "something"})
            assert refused.value.field == name and len(other.about) > 5
        else:
            notes = [f"{name} is left out: {other.about}"] if other.effect == "left out" else []
            assert checked(body, **{name: "something"}) == notes, (body, name)


def test_an_alias_is_another_name_of_a_field(served: Served) -> None:
    aliases = [(body, name, meta.extra["alias"]) for body in bodies(served) for name, meta in metas(body).items() if meta.extra]
    assert len(aliases) > 20
    for body, name, alias in aliases:
        head, _, rest = alias.partition(".")
        known = metas(ChatBody) if body.__name__ == "ReasoningWish" else metas(body)
        assert head in known and alias != name, (body, name)
        assert not rest or rest in metas(nested(body)[head])


def test_unknown_fields_are_named_with_their_place() -> None:
    assert checked(ChatBody, temprature=1, n=2, y=None, stream_options={"usage": True, "include_usage": True}) == [
        "unknown and ignored: temprature, stream_options.usage"
    ]
    assert checked(OllamaChatBody, options={"seed": 1, "speed": 2, "num_gpu": 3}) == ["unknown and ignored: options.speed"]
    with pytest.raises(InvalidField) as refused:
        checked(OllamaChatBody, options={"tfs_z": 0.5})
    assert refused.value.field == "options.tfs_z"


def test_many_and_long_names_make_a_short_note() -> None:
    [note] = checked(ChatBody, **{f"x{i:02}" * 100: 1 for i in range(20)})
    assert note.endswith(" and 12 more") and len(note) < 500


def test_ranges_hold_in_objects_too() -> None:
    for body, field, text in (
        (OllamaChatBody, "options.num_ctx", b'{"options": {"num_ctx": -1}}'),
        (ChatBody, "reasoning.max_tokens", b'{"messages": [], "reasoning": {"max_tokens": -2}}'),
    ):
        with pytest.raises(InvalidField, match="must be at least") as refused:
            parse(text, body)
        assert refused.value.field == field


def test_one_is_not_true() -> None:
    assert checked(LlamaCompletionBody, n=1.0) == []
    for value in (True, 2, "1", 10**400):
        with pytest.raises(InvalidField):
            check_fields(json.dumps({"n": value}).encode(), LlamaCompletionBody)


ROUTES: Sequence[tuple[str, dict[str, Any]]] = [
    ("/generate", {"prompt": "hi"}),
    ("/chat", {"messages": MESSAGES}),
    ("/v1/chat/completions", {"messages": MESSAGES, "stream": True}),
    ("/v1/chat/completions", {"messages": MESSAGES}),
    ("/v1/completions", {"prompt": "hi"}),
    ("/v1/responses", {"input": "hi"}),
    ("/v1/messages", {"messages": MESSAGES, "max_tokens": 8}),
    ("/v1/messages/count_tokens", {"messages": MESSAGES}),
    ("/api/chat", {"messages": MESSAGES}),
    ("/api/generate", {"prompt": "hi"}),
    ("/api/show", {"model": "tiny:1b"}),
    ("/completion", {"prompt": "hi"}),
    ("/tokenize", {"content": "hi"}),
    ("/detokenize", {"tokens": [72]}),
    ("/apply-template", {"messages": MESSAGES}),
    ("/models/load", {"model_id": "tiny:1b"}),
    ("/api/v1/assistant/chat", {"prompt": "hi"}),
]


@pytest.mark.parametrize(("path", "body"), ROUTES)
def test_every_route_notes_what_it_does_not_know(served: Served, path: str, body: dict[str, Any]) -> None:
    answer = served.http.post(path, json={**body, "b\r\nx-evil: 1\u00e9\x7f": 1})
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-locallab-notes"] == "unknown and ignored: b  x-evil: 1\\xe9" and "x-evil" not in answer.headers
    assert "x-locallab-notes" not in served.http.post(path, json=body).headers


def test_notes_of_fields_and_of_messages_share_a_header(served: Served) -> None:
    body = {"messages": [*MESSAGES, {"role": "tool", "content": "x", "tool_call_id": "1"}], "frobnicate": 1}
    answer = served.http.post("/v1/chat/completions", json=body)
    [notes] = answer.headers.get_list("x-locallab-notes")
    assert notes.startswith("unknown and ignored: frobnicate; ") and "answers no call" in notes


def test_what_is_refused_names_the_field_and_what_would_do(served: Served) -> None:
    answer = served.http.post("/v1/chat/completions", json={"messages": MESSAGES, "functions": [{"name": "f"}]})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "functions: is not supported: use tools"
    answer = served.http.post("/api/chat", json={"messages": MESSAGES, "options": {"tfs_z": 0.5}})
    assert answer.json()["error"].startswith("options.tfs_z: is not supported")
    assert served.engine.submitted == []


def test_the_description_has_the_tables(served: Served) -> None:
    described = Described(served.http.get("/openapi.json").json())
    for _, path, operation in described.operations():
        if "requestBody" in operation:
            assert all(field["description"] for field in described.body(operation)["properties"].values()), path
    chat = described.body(described.operation("post", "/v1/chat/completions"))
    assert "`functions` (use tools)" in chat["description"].partition("**Refused:**")[2].partition("**")[0]
    assert "`user` (" in chat["description"].partition("**No effect:**")[2]
    assert chat["properties"]["n_cmpl"]["description"] == "another name of n"
    options = described.api["components"]["schemas"]["Options"]
    assert "`num_gpu` (" in options["description"] and "minimum" in str(options["properties"]["num_predict"])
