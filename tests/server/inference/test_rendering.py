"""Templates behind a server: endless ones are refused while others go on, named ones and parts are used, `--chat-template`."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from locallab.chat.known_templates import CHATML
from locallab.settings import EngineSettings
from tests.support.http_server import Serve, only_prompt

ASK = {"messages": [{"role": "user", "content": "hi"}]}
LATE = {"messages": [{"role": "user", "content": "hi"}] * 30}
ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
ENDLESS_LATER = "{% if messages | length > 20 %}" + ENDLESS + "{% endif %}{{ messages[0].content }}"
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
ROUTES = ["/v1/chat/completions", "/chat", "/apply-template", "/v1/messages", "/api/chat"]


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(("source", "body"), [(ENDLESS, ASK), (ENDLESS_LATER, LATE)], ids=["always", "later"])
def test_an_endless_template_is_a_clear_error(serve: Serve, path: str, source: str, body: dict[str, Any]) -> None:
    with serve(engine={"template": source}) as served:
        refused = served.http.post(path, json={**body, "max_tokens": 5})
        assert refused.status_code == 400 and "the model's chat template uses more than" in refused.text
        assert served.http.post("/v1/completions", json={"prompt": "hi"}).status_code == 200


def test_the_event_loop_does_not_notice(serve: Serve) -> None:
    with serve(engine={"template": ENDLESS_LATER}) as served:
        answers: list[int] = []
        askers = [
            threading.Thread(
                target=lambda: answers.append(httpx.post(f"{served.url}/apply-template", json=LATE, timeout=60).status_code)
            )
            for _ in range(8)
        ]
        for asker in askers:
            asker.start()
        longest = 0.0
        while any(asker.is_alive() for asker in askers):
            began = time.monotonic()
            assert served.http.get("/health").status_code == 200
            assert served.http.post("/v1/chat/completions", json=ASK).status_code == 200
            longest = max(longest, time.monotonic() - began)
        assert answers == [400] * 8 and longest < 2


def test_a_long_conversation_is_rendered_all_the_same(serve: Serve) -> None:
    with serve(engine={"context": 200_000}) as served:
        body = {"messages": [{"role": "user", "content": f"question {i}"} for i in range(2_000)]}
        prompt = served.http.post("/apply-template", json=body).json()["prompt"]
        assert prompt.count("<|im_start|>user\nquestion") == 2_000
        assert served.http.post("/v1/chat/completions", json=body).status_code == 200


def test_a_model_without_a_template_says_so(serve: Serve) -> None:
    with serve(engine={"template": None}) as served:
        for path in ROUTES:
            refused = served.http.post(path, json={**ASK, "max_tokens": 5})
            assert refused.status_code == 400 and "the model has no chat template" in refused.text
        assert served.http.post("/v1/completions", json={"prompt": "hi"}).status_code == 200


def test_a_named_template_for_tools_and_one_for_documents(serve: Serve) -> None:
    named = {"tool_use": "FOR TOOLS {{ tools | tojson }}" + CHATML, "rag": "FOR DOCUMENTS {{ documents | tojson }}" + CHATML}
    with serve(engine={"named_templates": named}) as served:

        def prompt(**more: Any) -> str:
            return str(served.http.post("/apply-template", json={**ASK, **more}).json()["prompt"])

        assert prompt().startswith("<|im_start|>") and prompt(tools=[TOOL]).startswith("FOR TOOLS [{")
        assert prompt(tools=[TOOL], tool_choice="none").startswith("<|im_start|>")
        assert prompt(chat_template_kwargs={"documents": [{"text": "d"}]}).startswith('FOR DOCUMENTS [{"text": "d"}]')


def test_a_chosen_template(serve: Serve, tmp_path: Path) -> None:
    own = tmp_path / "own.jinja"
    own.write_text("OWN {{ messages[0].content }}")
    for chosen, begins in ((str(own), "OWN hi"), ("llama3", "<|start_header_id|>user")):
        layers = [("flags", {"chat_template": chosen})]
        with serve(engine={"template": None}, pool={"layers": layers}) as served:
            served.http.post("/v1/chat/completions", json=ASK)
            assert only_prompt(served).removeprefix("<s>").startswith(begins)


def test_a_setting_that_names_no_template_is_a_failed_load(serve: Serve) -> None:
    with serve(load=None, pool={"layers": [("flags", {"chat_template": "chatlm"})]}) as served:
        refused = served.http.post("/v1/chat/completions", json={"model": "tiny:1b", **ASK})
        assert "chat_template: 'chatlm' is no name" in refused.text and refused.status_code >= 400
    assert EngineSettings().chat_template is None
