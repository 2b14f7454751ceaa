"""llama.cpp's routes: /infill and /completion."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import gguf
import httpx
import pytest

from locallab.engine.request import Usage
from locallab.models.registry import Registry
from locallab.models.store import Store
from locallab.pool import Pool
from locallab.server.app import create_app
from locallab.server.dialects.answer_fields import timings_body
from locallab.server.dialects.llamacpp.stream import chosen
from locallab.settings import ServerSettings
from tests.support import tiny_gguf
from tests.support.fake_engine import TEXT, say
from tests.support.http_server import Served, only_prompt, running
from tests.support.openapi_check import Described
from tests.support.sse import DONE, events

LENGTH = len(TEXT.encode())


def test_others_are_not_urgent(coder: Served) -> None:
    coder.openai.completions.create(model="m", prompt="a")
    coder.http.post("/completion", json={"prompt": "a"})
    assert coder.engine.urgent == [False, False]


def test_infill(coder: Served) -> None:
    body = {
        "input_prefix": "def f(",
        "input_suffix": "return 1",
        "input_extra": [{"filename": "x.py", "text": "X"}],
        "prompt": "a",
        "n_predict": 8,
        "stop": "\n",
        "return_tokens": True,
    }
    answer = coder.http.post("/infill", json=body).json()
    assert only_prompt(coder) == "x.py\nX\n\n<PRE>def f(<SUF>return 1<MID>a" and coder.engine.urgent == [True]
    assert (answer["content"], answer["stop"], answer["stop_type"], answer["tokens_predicted"]) == (TEXT[:8], True, "limit", 8)
    assert bytes(answer["tokens"]).decode() == TEXT[:8] and answer["tokens_evaluated"] == 9 + len("def f(return 1a") + 3 - 1


def test_infill_streamed(coder: Served) -> None:
    *pieces, last = events(coder.http.post("/infill", json={"input_prefix": "a", "input_suffix": "b", "stream": True}))
    assert "".join(piece["content"] for piece in pieces) == TEXT and not any(piece["stop"] for piece in pieces)
    assert (last["stop"], last["content"], last["stop_type"], last["tokens_predicted"]) == (True, "", "eos", LENGTH)


def test_files_that_do_not_fit_are_left_out_the_first_ones_first(coder: Served) -> None:
    extra = [{"filename": f"{i}.py", "text": str(i) * 100} for i in range(6)]
    response = coder.http.post("/infill", json={"input_prefix": "a", "input_suffix": "b", "input_extra": extra, "n_predict": 4})
    assert response.headers["x-locallab-notes"] == "input_extra: 2 of 6 files do not fit the context and were left out"
    assert only_prompt(coder).startswith("2.py\n222")


def test_what_does_not_fit_without_files_either(coder: Served) -> None:
    response = coder.http.post("/infill", json={"input_prefix": "a" * 600, "input_suffix": "b"})
    error = response.json()["error"]
    assert response.status_code == 400 and (error["code"], error["param"]) == ("context_length_exceeded", "input_prefix")


def test_what_an_editor_plugin_sends(coder: Served) -> None:
    body = {
        "id_slot": 0,
        "input_prefix": "a",
        "input_suffix": "b",
        "input_extra": [],
        "prompt": "",
        "n_predict": 128,
        "n_indent": 4,
        "top_k": 40,
        "top_p": 0.9,
        "stream": False,
        "samplers": ["top_k", "top_p", "infill"],
        "cache_prompt": True,
        "t_max_prompt_ms": 500,
        "t_max_predict_ms": 1000,
        "response_fields": ["content"],
    }
    response = coder.http.post("/infill", json=body)
    assert response.json()["content"] == TEXT
    notes = ["n_indent is left out: indentation is left to the model", "samplers: 'infill' is left out"]
    assert response.headers["x-locallab-notes"].split("; ") == notes
    params = coder.engine.submitted[-1][1]
    assert (params.samplers, params.line_after_ms) == (("top_k", "top_p"), 1000)


def test_completion_as_llama_cpp_has_it(coder: Served) -> None:
    """The request of Continue's llama.cpp provider."""
    body = {"prompt": "hi", "n_predict": 9, "stream": True, "mirostat": 0, "stop": ["zz"], "temperature": 0.2}
    with coder.http.stream("POST", "/completion", json=body) as response:
        pieces = [json.loads(line.removeprefix("data: ")) for line in response.iter_lines() if line.startswith("data: ")]
    assert "".join(piece["content"] for piece in pieces) == TEXT[:8] + "\ufffd" and pieces[-1]["stop_type"] == "limit"
    assert only_prompt(coder) == "<s>hi"


def test_a_stop_string_is_told(coder: Served) -> None:
    answer = coder.http.post("/completion", json={"prompt": [256, 104], "stop": ["zz", "w"]}).json()
    assert (answer["content"], answer["stop_type"], answer["stopping_word"]) == ("Hello, ", "word", "w")


def test_probabilities(coder: Served) -> None:
    answer = coder.http.post("/completion", json={"prompt": "hi", "n_probs": 1, "n_predict": 1}).json()
    top = [{"id": 97, "token": "a", "bytes": [97], "logprob": 0.0}]
    assert answer["completion_probabilities"] == [
        {"id": 72, "token": "H", "bytes": [72], "logprob": -0.72, "top_logprobs": top}
    ]
    streamed = events(coder.http.post("/completion", json={"prompt": "hi", "n_probs": 1, "n_predict": 1, "stream": True}))
    assert all("completion_probabilities" not in event for event in streamed if event["stop"])


def test_several_prompts_are_answered_in_their_order(coder: Served) -> None:
    coder.engine.script = lambda prompt, params: say(f"{bytes(prompt[1:]).decode()}#{params.seed}")
    body = {"prompt": ["a", [256, 98], [256, "c", 100], {"prompt_string": "e"}], "n_cmpl": 2, "seed": 3}
    expected = [f"{text}#{seed}" for text in ("a", "b", "cd", "e") for seed in (3, 4)]
    answers = coder.http.post("/completion", json=body).json()
    assert [(each["index"], each["content"]) for each in answers] == list(enumerate(expected))
    assert [each["prompt"] for each in answers[::2]] == ["<s>a", "<s>b", "<s>cd", "<s>e"]
    streamed = events(coder.http.post("/completion", json={**body, "stream": True}))
    texts = ["".join(each["content"] for each in streamed if each["index"] == index) for index in range(8)]
    assert texts == expected and sorted(each["index"] for each in streamed if each["stop"]) == list(range(8))


@pytest.mark.parametrize("stream", [False, True])
def test_the_settings_of_an_answer_are_told(coder: Served, stream: bool) -> None:
    coder.script(b"a", b"\n", b"b")
    body = {"prompt": "hi", "n_predict": 12, "top_k": 7, "logit_bias": [[98, False], [97, 2]], "stream": stream}
    response = coder.http.post("/completion", json=body)
    answer = events(response)[-1] if stream else response.json()
    settings = answer["generation_settings"]
    assert (settings["n_predict"], settings["top_k"], settings["seed"], settings["stream"]) == (12, 7, 0xFFFFFFFF, stream)
    assert settings["logit_bias"] == [{"bias": None, "token": 98}, {"bias": 2.0, "token": 97}]
    assert answer["has_new_line"] is True and answer["truncated"] is False and answer["tokens"] == []


def test_the_end_of_the_context_truncates(coder: Served) -> None:
    coder.script(b"a" * 508, b"b")
    body = {"prompt": "hi", "n_predict": 509}
    assert coder.http.post("/completion", json=body).json()["truncated"] is True
    assert coder.http.post("/completion", json={**body, "n_predict": 500}).json()["truncated"] is False


@pytest.mark.parametrize("path", ["/completion", "/v1/completions", "/v1/chat/completions", "/v1/fim/completions", "/infill"])
@pytest.mark.parametrize("options", [None, {}, {"stream_options": {"include_usage": True}}], ids=["whole", "stream", "usage"])
def test_timings_are_in_every_answer(coder: Served, path: str, options: dict[str, Any] | None) -> None:
    coder.engine.cached = 2
    texts = {
        "prompt": "hi",
        "suffix": "b",
        "input_prefix": "a",
        "input_suffix": "b",
        "messages": [{"role": "user", "content": "hi"}],
    }
    body = {**texts, **({} if options is None else {"stream": True, **options})}
    response = coder.http.post(path, json={key: value for key, value in body.items() if path != "/infill" or key != "prompt"})
    found = [response.json()] if options is None else [event for event in events(response) if event != DONE]
    timings = found[-1]["timings"]
    assert timings["cache_n"] == 2 and timings["predicted_n"] == LENGTH and timings["prompt_n"] > 0
    assert not any("timings" in event for event in found[:-1])


def test_timings_of_several_answers() -> None:
    usages = [Usage(10, 5, 2, 1.0, 2.0), Usage(10, 1, 10, 0.5, 0.0), Usage(8, 0, 0)]
    assert timings_body(usages[:2], 2) == {
        "cache_n": 2,
        "prompt_n": 8,
        "prompt_ms": 1000.0,
        "prompt_per_token_ms": 125.0,
        "prompt_per_second": 8.0,
        "predicted_n": 6,
        "predicted_ms": 2000.0,
        "predicted_per_token_ms": 500.0,
        "predicted_per_second": 2.0,
    }
    nothing = timings_body(usages[2:])
    assert {name: value for name, value in nothing.items() if value} == {"prompt_n": 8}


def test_probabilities_after_sampling(coder: Served) -> None:
    body = {"prompt": "hi", "n_probs": 1, "n_predict": 1, "post_sampling_probs": True}
    [found] = coder.http.post("/completion", json=body).json()["completion_probabilities"]
    assert coder.engine.submitted[-1][1].drawn_logprobs
    assert found["prob"] == pytest.approx(math.exp(-0.72)) and "logprob" not in found and "top_logprobs" not in found
    assert found["top_probs"] == [{"id": 97, "token": "a", "bytes": [97], "prob": 1.0}]
    [first, _] = events(coder.http.post("/completion", json={**body, "stream": True}))
    assert first["completion_probabilities"] == [found]
    coder.http.post("/completion", json={"prompt": "hi", "post_sampling_probs": True})
    assert not coder.engine.submitted[-1][1].drawn_logprobs


def test_chosen_fields(coder: Served) -> None:
    body = {"prompt": "hi", "n_predict": 3, "response_fields": ["content", "tokens_predicted", "content/x", "no/such"]}
    assert coder.http.post("/completion", json=body).json() == {"content": TEXT[:3], "tokens_predicted": 3}
    *pieces, last = events(coder.http.post("/completion", json={**body, "stream": True}))
    assert last == {"content": "", "tokens_predicted": 3} and all("stop" in piece for piece in pieces)
    whole = coder.http.post("/completion", json={**body, "response_fields": []}).json()
    assert whole["stop_type"] == "limit"


def test_a_field_in_an_object_is_named_by_its_path() -> None:
    assert chosen({"a": {"b": {"c": 1}}, "d": None}, ["a/b/c", "a/b", "d", "d/x", "a/x"]) == {
        "a/b/c": 1,
        "a/b": {"c": 1},
        "d": None,
    }


def test_a_schema(coder: Served) -> None:
    coder.http.post("/completion", json={"prompt": "hi", "json_schema": {"type": "object"}})
    coder.http.post("/completion", json={"prompt": "hi", "grammar": 'root ::= "a"'})
    assert [each.kind for each in coder.engine.prepared] == ["json_schema", "gbnf"]


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "no text at all": ("/infill", {"prompt": "x"}, "input_prefix"),
    "no prompt": ("/completion", {}, "prompt"),
    "mirostat": ("/completion", {"prompt": "a", "mirostat": 3}, "mirostat"),
    "dry": ("/completion", {"prompt": "a", "dry_multiplier": -0.8}, "dry_multiplier"),
    "samplers": ("/completion", {"prompt": "a", "samplers": {"top_k": 1}}, "samplers"),
    "too many answers": ("/completion", {"prompt": "a", "n_cmpl": 129}, "n_cmpl"),
    "a list that is empty": ("/completion", {"prompt": [["a"], []]}, "prompt"),
    "too many": ("/completion", {"prompt": "a", "n_probs": 21}, "n_probs"),
    "two constraints": ("/completion", {"prompt": "a", "grammar": "x", "json_schema": {}}, "json_schema"),
    "beams": ("/completion", {"prompt": "a", "use_beam_search": True}, "use_beam_search"),
}


@pytest.mark.parametrize(("path", "body", "param"), REFUSED.values(), ids=REFUSED)
def test_refused(coder: Served, path: str, body: dict[str, Any], param: str) -> None:
    response = coder.http.post(path, json=body)
    assert response.status_code == 400 and response.json()["error"]["param"] == param, response.text


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/infill", {"input_prefix": "a", "input_suffix": "b"}, "input_suffix"),
        ("/v1/fim/completions", {"prompt": "a"}, "suffix"),
        ("/v1/completions", {"prompt": "a", "suffix": "b"}, "suffix"),
    ],
)
def test_a_model_that_cannot_fill_in(served: Served, path: str, body: dict[str, Any], param: str) -> None:
    response = served.http.post(path, json=body)
    error = response.json()["error"]
    assert response.status_code == 400 and error["param"] == param
    assert error["message"].startswith(f"{param}: model 'tiny:1b' has no tokens to fill in text with")


def test_answers_are_as_described(coder: Served) -> None:
    described = Described(coder.http.get("/openapi.json").json())
    for path, body in (
        ("/infill", {"input_prefix": "a", "input_suffix": "b", "n_probs": 2}),
        ("/completion", {"prompt": "a"}),
        ("/completion", {"prompt": ["a", [97, "b"]]}),
        ("/v1/fim/completions", {"prompt": "a"}),
    ):
        described.check_response(described.operation("post", path), coder.http.post(path, json=body))


QWEN = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>")
MORE = [("▁", gguf.TokenType.NORMAL), *((text, gguf.TokenType.CONTROL) for text in QWEN)]


def test_a_real_engine_fills_in(tmp_path: Path) -> None:
    file = tiny_gguf.write(tmp_path / "tiny.gguf", "llama", more=MORE)
    source = f"{{kind: file, path: '{file}'}}"
    entry = f"{{id: 'tiny:1b', source: {source}, size: 1 MB, context: 512, description: a tiny one}}"
    (tmp_path / "models.yaml").write_text(f"models:\n- {entry}\n")
    pool = Pool(Registry.load(tmp_path / "models.yaml"), Store(tmp_path / "store"))
    pool.load_now("tiny:1b")
    with running(create_app(pool, ServerSettings(rate_limit=False))) as url, httpx.Client(base_url=url, timeout=30) as client:
        extra = [{"filename": "x", "text": "y"}]
        body = {"input_prefix": "ab", "input_suffix": "cd", "n_predict": 5, "n_probs": 1, "ignore_eos": True, "temperature": 0}
        body["return_tokens"] = True
        answer = client.post("/infill", json=body).json()
        assert answer["tokens_predicted"] == len(answer["tokens"]) == 5 and answer["tokens_evaluated"] == 1 + 3 + 6
        eos = {"bias": None, "token": tiny_gguf.EOS}
        assert answer["generation_settings"]["logit_bias"] == [eos] and answer["generation_settings"]["ignore_eos"] is True
        timings = answer["timings"]
        assert (timings["cache_n"], timings["prompt_n"], timings["predicted_n"]) == (0, 10, 5)
        assert timings["prompt_ms"] > 0 and timings["prompt_per_second"] == pytest.approx(10_000 / timings["prompt_ms"])
        assert timings["predicted_per_second"] == pytest.approx(4_000 / timings["predicted_ms"]), (
            "the first comes with the prompt"
        )
        assert [each["top_logprobs"][0]["id"] for each in answer["completion_probabilities"]] == answer["tokens"]
        longer = client.post("/infill", json={**body, "input_extra": extra}).json()
        assert longer["tokens_evaluated"] > 10
        fim = client.post(
            "/v1/fim/completions", json={"prompt": "ab", "suffix": "cd", "max_tokens": 5, "temperature": 0}
        ).json()
        assert fim["choices"][0]["text"] == answer["content"]
        assert client.get("/props").json()["total_slots"] == 32  # streams of 512 tokens in the default pool
