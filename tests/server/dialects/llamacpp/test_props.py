from __future__ import annotations

from tests.support.http_server import Serve, Served


def test_props(coder: Served) -> None:
    props = coder.http.get("/props").json()
    assert props["default_generation_settings"]["n_ctx"] == 512 and props["total_slots"] == 1
    assert props["model_path"] == "tiny:1b" and props["chat_template"] == "{{ messages[0].content }}"
    assert props["chat_template_caps"]["supports_tools"] is True


def test_props_without_a_model(serve: Serve) -> None:
    with serve(load=None) as served:
        response = served.http.get("/props")
        assert response.status_code == 503 and "no model is loaded" in response.json()["error"]["message"]
