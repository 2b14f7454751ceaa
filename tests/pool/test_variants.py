"""Variants of a model: the same file with its own template, system prompt and sampling."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from locallab.errors import ModelLoadError
from locallab.inprocess.engine import Engine
from locallab.keys import Keyring, KeyStore
from locallab.models import Registry, Store
from locallab.pool import Pool
from locallab.server.app import create_app
from locallab.settings import ServerSettings
from tests.support import tiny_gguf
from tests.support.http_server import running

ENTRIES = """models:
  - {{id: 'tiny:1m', source: {{kind: file, path: '{file}'}}, description: tiny, context: 128}}
  - id: 'tutor:1m'
    base: 'tiny:1m'
    system: Explain it.
    template: tutor.jinja
    settings: {{temperature: 0.25, top_k: 3}}
  - {{id: 'broken:1m', base: 'tiny:1m', template: missing.jinja}}
"""
TEMPLATE = "{% for message in messages %}[{{ message.role }}|{{ message.content }}]{% endfor %}"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("registry")
    (folder / "tutor.jinja").write_text(TEMPLATE)
    path = folder / "models.yaml"
    path.write_text(ENTRIES.format(file=tiny_gguf.write(folder / "tiny.gguf", "llama")))
    return path


@pytest.fixture(scope="module")
def client(registry: Path) -> Iterator[httpx.Client]:
    settings = ServerSettings(rate_limit=False)
    pool = Pool(Registry.load(registry), Store(registry.parent / "store"), grace=0.0)
    pool.load_now("tutor:1m")
    app = create_app(pool, settings, Keyring(settings, KeyStore(registry.parent / "keys.json"), False), None)
    with running(app) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


def test_a_variant_has_its_own_template_and_system_prompt(client: httpx.Client) -> None:
    user = {"role": "user", "content": "Hi"}

    def prompt(*messages: dict[str, str]) -> str:
        return str(client.post("/apply-template", json={"model": "tutor:1m", "messages": messages}).json()["prompt"])

    assert prompt(user) == "[system|Explain it.][user|Hi]"
    assert prompt({"role": "system", "content": "Be brief."}, user) == "[system|Be brief.][user|Hi]"


def test_a_variant_has_its_own_sampling(client: httpx.Client) -> None:
    body = {"model": "tutor:1m", "input": "hi", "max_output_tokens": 1}
    assert client.post("/v1/responses", json=body).json()["temperature"] == 0.25
    assert client.post("/v1/responses", json={**body, "temperature": 1}).json()["temperature"] == 1


def test_a_template_that_is_missing_is_named(registry: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"missing\.jinja. is no name .* and no file to read"):
        Engine("broken:1m", registry=str(registry))


def test_a_program_s_own_settings_go_before_the_variant_s(registry: Path) -> None:
    with Engine("tutor:1m", registry=str(registry), temperature=0.0) as engine:
        assert engine.info.sampling == {"temperature": 0.0, "top_k": 3}
        assert engine.generate("a", max_tokens=8, ignore_eos=True) == engine.generate("a", max_tokens=8, ignore_eos=True)
