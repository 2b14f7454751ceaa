"""The assistant over HTTP, on the fake engine: all tasks, whole and streamed, and wrong requests."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from jsonschema import Draft202012Validator

from locallab.engine.request import Constraint
from locallab.errors import ConfigError, EngineFailure, InvalidField
from locallab.server.dialects.assistant import request
from locallab.server.dialects.assistant.answer import AssistantAnswer
from tests.support.dialect_requests import TASKS
from tests.support.fake_engine import FIM, say
from tests.support.http_server import Serve, Served, start_in
from tests.support.sse import parsed

ROOT = "/api/v1/assistant"
tasks = pytest.mark.parametrize("task", TASKS)
PROMPT = "words that no program begins with"


@pytest.fixture(scope="module")
def roomy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Serve with a large context: a token is a byte here, and the system messages are long."""
    with start_in(tmp_path_factory.mktemp("assistant"))(engine={"context": 8192}) as served:
        yield served


@pytest.fixture
def served(roomy: Served) -> Served:
    roomy.engine.reset()
    return roomy


def post(served: Served, task: str, /, **body: Any) -> dict[str, Any]:
    response = served.http.post(f"{ROOT}/{task}", json={"prompt": PROMPT} | body)
    assert response.status_code == 200, response.text
    return dict(response.json())


def refused(served: Served, task: str, status: int = 400, /, **body: Any) -> str:
    response = served.http.post(f"{ROOT}/{task}", json=body)
    assert response.status_code == status and set(response.json()) == {"detail"}, response.text
    return str(response.json()["detail"])


def asked(served: Served) -> str:
    """Return the last prompt that the engine got."""
    return served.engine.submitted[-1][0]


# The document, example by example.


def test_generate_as_documented(served: Served) -> None:
    served.script(*say("(name):\n    print(f'Hello {name}!')\n```\nThis says hello."))
    body = {"prompt": "def hello", "task": "generate", "language": "python", "max_tokens": 256, "temperature": 0.2}
    answer = served.http.post(f"{ROOT}/generate", json=body).json()
    assert answer["response"] == "def hello(name):\n    print(f'Hello {name}!')"
    assert answer["task"] == "generate" and answer["model"] == "tiny:1b" and answer["finish_reason"] == "stop"
    assert answer["tokens_used"] == answer["usage"]["completion_tokens"] > 0
    params = served.engine.submitted[-1][1]
    assert (params.max_tokens, params.temperature) == (256, 0.2)


def test_refactor_as_documented(served: Served) -> None:
    served.script(*say("```python\nfor item in list: print(item)\n```\n- no index"))
    answer = post(served, "refactor", prompt="for i in range(len(list)): print(i)", task="refactor")
    assert answer["response"].startswith("```python") and answer["task"] == "refactor"
    assert answer["code"] == "for item in list: print(item)"
    assert "user\nRefactor this code:\nfor i in range(len(list)): print(i)<|im_end|>" in asked(served)


@pytest.mark.parametrize(("task", "prompt"), [("debug", "buggy code here"), ("audit", "code to audit")])
def test_debug_and_audit_as_documented(served: Served, task: str, prompt: str) -> None:
    answer = post(served, task, prompt=prompt, task=task)
    assert answer["task"] == task and answer["response"] and prompt in asked(served)


def test_chat_as_documented(served: Served) -> None:
    history = [{"role": "user", "content": "first question"}, {"role": "assistant", "content": "first answer"}]
    assert post(served, "chat", prompt="your question", history=history)["task"] == "chat"
    turns = ("user\nfirst question", "assistant\nfirst answer", "user\nyour question")
    assert "".join(f"<|im_start|>{turn}<|im_end|>\n" for turn in turns) in asked(served)


def test_templates_as_documented(served: Served) -> None:
    assert served.http.get(f"{ROOT}/templates").json() == {
        "templates": {
            "refactor": "Refactor this code:\n{code}",
            "debug": "Debug this code:\n{code}",
            "generate": "Generate code for:\n{description}",
            "audit": "Audit this code for security:\n{code}",
            "document": "Document this code:\n{code}",
        }
    }


def test_the_example_without_language_as_documented(served: Served) -> None:
    served.script(*say("\n    return 1 if n < 2 else n * factorial(n - 1)\n```"))
    answer = post(served, "generate", prompt="def factorial(n):", task="generate", max_tokens=150)
    assert answer["response"] == "def factorial(n):\n    return 1 if n < 2 else n * factorial(n - 1)"
    assert asked(served).endswith("assistant\n```\ndef factorial(n):")


# What every task has in common.


@tasks
def test_answers_are_what_they_are_declared_to_be(served: Served, task: str) -> None:
    answer = post(served, task)
    assert msgspec.convert(answer, AssistantAnswer, strict=True)
    assert set(answer) == {"response", "task", "tokens_used", "model", "finish_reason", "usage", "code"}


@tasks
def test_the_system_message_comes_first_and_names_the_language(served: Served, task: str) -> None:
    post(served, task, language="Haskell")
    system = asked(served).partition("<|im_end|>")[0]
    assert system.startswith("<s><|im_start|>system\nYou are") and "Haskell" in system and "{" not in system


@tasks
def test_history_is_taken_by_every_task(served: Served, task: str) -> None:
    post(served, task, history=[{"role": "user", "content": "earlier words"}])
    assert "earlier words" in asked(served)


@tasks
@pytest.mark.parametrize("name", ["model", "model_id"])
def test_the_model_may_be_named(served: Served, task: str, name: str) -> None:
    assert post(served, task, **{name: "FIRST"})["model"] == "tiny:1b"
    assert "did you mean tiny:1b" in refused(served, task, 404, prompt=PROMPT, **{name: "tiny"})


@tasks
def test_a_stream_is_the_answer_in_events(served: Served, task: str) -> None:
    whole = post(served, task)
    response = served.http.post(f"{ROOT}/{task}", json={"prompt": PROMPT, "stream": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    *tokens, last = parsed(response.text)
    assert all(set(each) == {"type", "text"} and each["type"] == "token" for each in tokens)
    assert tokens and "".join(each["text"] for each in tokens) == whole.pop("response")
    assert last == {"type": "done", **whole}


@tasks
def test_sampling_fields_are_heeded(served: Served, task: str) -> None:
    post(served, task, top_k=3, seed=5, stop=["END"], max_tokens=7, repeat_penalty=1.1)
    params = served.engine.submitted[-1][1]
    assert (params.top_k, params.seed, params.stop, params.max_tokens, params.repeat_penalty) == (3, 5, ("END",), 7, 1.1)


def test_temperature_is_low_unless_the_request_says(served: Served) -> None:
    for body, expected in (({}, 0.2), ({"temperature": 0.9}, 0.9), ({"temperature": 0}, 0.0), ({"do_sample": False}, 0.0)):
        post(served, "debug", **body)
        assert served.engine.submitted[-1][1].temperature == expected


def test_only_a_continuation_has_a_limit_of_its_own(served: Served) -> None:
    for prompt, limit in (("def f", 512), (PROMPT, None)):
        post(served, "generate", prompt=prompt)
        assert served.engine.submitted[-1][1].max_tokens == limit


@tasks
def test_an_answer_that_is_cut_says_so(served: Served, task: str) -> None:
    answer = post(served, task, max_tokens=2)
    assert (answer["finish_reason"], answer["tokens_used"]) == ("length", 2)


# What comes out.


ANSWERS = {
    "no fence": ("Just words.", None, None),
    "one": ("```py\na = 1\n```\nDone.", "a = 1", "a = 1"),
    "two": ("It is this:\n```\nbad\n```\nBetter:\n```\ngood\n```", "bad", "good"),
    "an empty one first": ("```\n```\n```\nx\n```", "x", "x"),
    "cut in the code": ("```c\nint x;\nint", "int x;\nint", "int x;\nint"),
}


@pytest.mark.parametrize(("text", "code", "fix"), ANSWERS.values(), ids=ANSWERS)
def test_code_is_the_block_that_holds_it(served: Served, text: str, code: str | None, fix: str | None) -> None:
    served.script(*say(text))
    expected = {"generate": code, "refactor": code, "document": code, "chat": code, "debug": fix, "audit": None}
    assert {task: post(served, task)["code"] for task in TASKS} == expected
    assert post(served, "chat")["response"] == text


def test_a_continuation_is_prompt_and_what_follows(served: Served) -> None:
    served.script(*say(" + b\n# '```' is text\n```\nWords."))
    whole = post(served, "generate", prompt="def add(a, b):\n    return a", language="python")
    assert whole["response"] == whole["code"] == "def add(a, b):\n    return a + b\n# '```' is text"
    assert asked(served).endswith("assistant\n```python\ndef add(a, b):\n    return a")
    body = {"prompt": "def add(a, b):\n    return a", "language": "python", "stream": True}
    *tokens, last = parsed(served.http.post(f"{ROOT}/generate", json=body).text)
    assert "".join(each["text"] for each in tokens) == whole["response"] and last["code"] == whole["code"]


def test_a_continuation_that_ends_at_once(served: Served) -> None:
    served.script(*say("```\nWords."))
    assert post(served, "generate", prompt="x = 1\n")["response"] == "x = 1\n"


@pytest.mark.parametrize("stream", [False, True])
def test_the_closing_fence_is_no_stop_string_of_the_request(served: Served, stream: bool) -> None:
    """Those of the request are in the answer if it wants them there."""
    body = {"prompt": "def f", "include_stop_str_in_output": True, "stop": ["END"], "stream": stream}
    for said, expected in (("(): pass\n```\nWords.", "def f(): pass"), ("(): END\n```\nWords.", "def f(): END")):
        served.script(*say(said))
        response = served.http.post(f"{ROOT}/generate", json=body)
        *tokens, last = parsed(response.text) if stream else [{"text": response.json()["response"]}, response.json()]
        assert ("".join(each["text"] for each in tokens), last["code"]) == (expected, expected)


def test_a_description_is_no_continuation(served: Served) -> None:
    served.script(*say("```python\nx = 1\n```"))
    answer = post(served, "generate", prompt="a function that adds")
    assert answer["response"] == "```python\nx = 1\n```" and answer["code"] == "x = 1"
    assert asked(served).endswith("user\nGenerate code for:\na function that adds<|im_end|>\n<|im_start|>assistant\n")


def test_a_suffix_is_filled_in_before(tmp_path: Path) -> None:
    with start_in(tmp_path)(engine={"context": 8192, "fim": FIM}) as served:
        served.script(*say("    return a + b"))
        answer = post(served, "generate", prompt="def add(a, b):\n", suffix="\nprint(add(1, 2))")
        assert served.engine.urgent == [True]
        assert answer["response"] == answer["code"] == "def add(a, b):\n    return a + b"
        assert asked(served) == "<PRE>def add(a, b):\n<SUF>\nprint(add(1, 2))<MID>"
        assert post(served, "generate", prompt="", suffix="x = 1")["response"] == "    return a + b"
        assert post(served, "generate", prompt="def f", suffix="")["response"] == "def f    return a + b"


SCHEMAS = {"audit": request.audit_schema(lines=1), "debug": request.debug_schema(len(PROMPT))}
VERDICTS: dict[str, Any] = {
    "audit": {
        "findings": [{"title": "t", "detail": "d", "line": 1, "severity": "high", "fix": "f"}],
        "summary": "one",
    },
    "debug": {"diagnosis": "d", "fix": "f", "code": "x = 1"},
}


@pytest.mark.parametrize("task", VERDICTS)
def test_json(served: Served, task: str) -> None:
    text = json.dumps(VERDICTS[task])
    served.script(*say(text))
    answer = post(served, task, format="json")
    assert answer["response"] == text and answer["result"] == VERDICTS[task] and "detail" not in answer
    assert answer["code"] == VERDICTS[task].get("code")
    assert msgspec.convert(answer, AssistantAnswer, strict=True)
    constraint = served.engine.submitted[-1][1].constraint
    assert constraint is not None and constraint.kind == "json_schema" and constraint.field == "format"
    assert json.loads(constraint.source) == SCHEMAS[task] and served.engine.prepared == [constraint]
    assert "JSON" in asked(served) and Draft202012Validator(SCHEMAS[task]).is_valid(answer["result"])
    last = parsed(served.http.post(f"{ROOT}/{task}", json={"prompt": PROMPT, "format": "json", "stream": True}).text)[-1]
    assert last["result"] == VERDICTS[task]


@pytest.mark.parametrize("task", VERDICTS)
def test_json_that_is_cut_is_no_result(served: Served, task: str) -> None:
    served.script(*say(json.dumps(VERDICTS[task])))
    answer = post(served, task, format="json", max_tokens=9)
    assert answer["finish_reason"] == "length" and answer["result"] is None and answer["code"] is None
    assert "max_tokens" in answer["detail"]
    assert msgspec.convert(answer, AssistantAnswer, strict=True)


def test_format_text_is_the_usual_answer(served: Served) -> None:
    assert "result" not in post(served, "audit", format="text")
    assert served.engine.submitted[-1][1].constraint is None


def test_a_constraint_that_the_model_cannot_honour_is_refused(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def prepare(constraint: Constraint) -> None:
        raise InvalidField(constraint.field, "this model cannot")

    monkeypatch.setattr(served.engine, "prepare", prepare)
    assert refused(served, "audit", prompt="x", format="json") == "format: this model cannot"


def test_thoughts_are_no_part_of_the_answer(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
        "{% if enable_thinking is defined and not enable_thinking %}(no thoughts){% endif %}{# </think> #}"
    )
    with start_in(tmp_path)(engine={"context": 8192, "template": template}) as served:
        served.script(*say("<think>hm\n```\nno\n```\n</think>\n```\nyes\n```"))
        answer = post(served, "refactor")
        assert (answer["response"], answer["code"]) == ("```\nyes\n```", "yes")
        assert asked(served).endswith("(no thoughts)")


# What is wrong.


@tasks
def test_a_task_that_does_not_agree_with_the_route(served: Served, task: str) -> None:
    other = TASKS[TASKS.index(task) - 1]
    assert (
        refused(served, task, prompt="x", task=other) == f"task: '{other}' does not agree with the route, which is for '{task}'"
    )
    assert "'explain'" in refused(served, task, prompt="x", task="explain")


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no prompt": ({}, "prompt: is missing"),
    "null": ({"prompt": None}, "prompt: is missing"),
    "empty": ({"prompt": ""}, "prompt: is empty"),
    "blank": ({"prompt": " \n"}, "prompt: is empty"),
    "prompt no text": ({"prompt": 3}, "prompt: expected str, got int"),
    "task no text": ({"prompt": "x", "task": 3}, "task: expected str, got int"),
    "language of lines": ({"prompt": "x", "language": "a\nb"}, "language: must be a name"),
    "language with a fence": ({"prompt": "x", "language": "`c"}, "language: must be a name"),
    "long language": ({"prompt": "x", "language": "a" * 65}, "language: must be a name"),
    "history no list": ({"prompt": "x", "history": "a"}, "history: expected array, got str"),
    "temperature": ({"prompt": "x", "temperature": -1}, "temperature: must be at least 0"),
    "max_tokens": ({"prompt": "x", "max_tokens": "many"}, "max_tokens: expected int, got str"),
    "stream": ({"prompt": "x", "stream": "yes"}, "stream: expected bool, got str"),
    "two models": ({"prompt": "x", "model": "a", "model_id": "b"}, "model_id: 'b' does not agree with model, which is 'a'"),
    "format": ({"prompt": "x", "format": "xml"}, "format: unknown format 'xml'; known: text, json"),
}


@tasks
@pytest.mark.parametrize(("body", "detail"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_named(served: Served, task: str, body: dict[str, Any], detail: str) -> None:
    assert refused(served, task, **body).startswith(detail)
    assert served.engine.submitted == []


def test_fields_that_belong_to_other_tasks(served: Served) -> None:
    assert refused(served, "chat", prompt="x", format="json") == "format: json is for debug and audit only, not for chat"
    assert refused(served, "debug", prompt="x", suffix="y") == "suffix: is for generate only, not for debug"


@pytest.mark.parametrize("field", ["stop", "stop_token_ids"])
def test_json_is_not_to_be_cut(served: Served, field: str) -> None:
    value: list[Any] = ["}"] if field == "stop" else [1]
    assert refused(served, "audit", prompt="x", format="json", **{field: value}).startswith(
        f"{field}: cannot be combined with format json"
    )


def test_a_suffix_that_the_model_cannot_fill_in(served: Served) -> None:
    assert refused(served, "generate", prompt="x", suffix="y").startswith("suffix: model 'tiny:1b' has no tokens")
    history = [{"role": "user", "content": "a"}]
    assert refused(served, "generate", prompt="x", suffix="y", history=history).startswith(
        "history: cannot be combined with suffix"
    )


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'"x"', b"\xff"])
def test_bodies_that_are_no_object(served: Served, body: bytes) -> None:
    for task in TASKS:
        response = served.http.post(f"{ROOT}/{task}", content=body)
        assert response.status_code == 400 and set(response.json()) == {"detail"}


def test_a_prompt_beyond_the_context(served: Served) -> None:
    assert "maximum context length is 8192 tokens" in refused(served, "debug", prompt="x" * 9000)


def test_methods_and_paths(served: Served) -> None:
    assert served.http.get(f"{ROOT}/generate").status_code == 405
    assert served.http.post(f"{ROOT}/templates").status_code == 405
    assert served.http.post(f"{ROOT}/explain").status_code == 404


def test_a_failure_in_mid_stream_is_an_event(served: Served) -> None:
    go = threading.Event()
    served.script(b"a", go, EngineFailure("decode failed"))
    with served.http.stream("POST", f"{ROOT}/chat", json={"prompt": "x", "stream": True}) as response:
        body = response.iter_text()
        first = next(body)
        go.set()
        events = parsed(first + "".join(body))
    assert events == [{"type": "token", "text": "a"}, {"type": "error", "detail": "decode failed"}]


def test_a_failure_before_the_first_byte(served: Served) -> None:
    served.script(EngineFailure("decode failed"))
    for stream in (False, True):
        assert refused(served, "chat", 500, prompt="x", stream=stream) == "decode failed"


def test_overloaded(served: Served) -> None:
    served.engine.full = True
    for stream in (False, True):
        response = served.http.post(f"{ROOT}/debug", json={"prompt": "x", "stream": stream})
        assert response.status_code == 503 and response.headers["retry-after"] == "7" and "busy" in response.json()["detail"]


def test_the_users_own_templates(tmp_path: Path, serve: Serve) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("templates: {debug: 'Why? {code}'}\nsystem: {debug: ''}")
    with serve(templates=str(mine)) as served:
        assert served.http.get(f"{ROOT}/templates").json()["templates"]["debug"] == "Why? {code}"
        post(served, "debug", prompt="{x}")
        assert asked(served) == "<s><|im_start|>user\nWhy? {x}<|im_end|>\n<|im_start|>assistant\n"


def test_wrong_templates_end_the_start(tmp_path: Path, serve: Serve) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("templates: {debug: 'Why?'}")
    with pytest.raises(ConfigError, match=r"mine\.yaml: templates: debug: must hold the field"), serve(templates=str(mine)):
        pass
