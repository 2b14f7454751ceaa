"""A server with small real models: for chat, vectors and scores."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from locallab.keys import Keyring, KeyStore
from locallab.models import FileSource, ModelSpec, Registry, Store
from locallab.pool import Pool
from locallab.server.app import create_app
from locallab.settings import ServerSettings
from tests.support import tiny_embedding_gguf, tiny_gguf, tiny_projector
from tests.support.http_server import running
from tests.support.openapi_check import Described

ENGINE = {"threads": 1, "gpu_layers": 0}


@dataclasses.dataclass
class Tiny:
    url: str
    http: httpx.Client
    pool: Pool
    paths: dict[str, Path]

    def post(self, path: str, **body: Any) -> Any:
        """Return the answer to a valid body, and check it against /openapi.json."""
        response = self.http.post(path, json=body)
        assert response.status_code == 200, response.text
        described = Described(self.http.get("/openapi.json").json())
        where = {"/embeddings": "/v1/embeddings", "/rerank": "/v1/rerank"}.get(path, path)
        described.check_response(described.operation("post", where), response)
        return response.json()

    def refused(self, path: str, **body: Any) -> Any:
        """Return the answer to an invalid body."""
        response = self.http.post(path, json=body)
        assert response.status_code == 400, response.text
        return response.json()


def _chat(folder: Path, architecture: str, projector: str | None) -> Path:
    if projector is None:
        return tiny_gguf.write(folder / "chat.gguf", architecture)
    tiny_projector.write(folder / "mmproj.gguf", projector)
    more = tiny_projector.vocabulary(projector)
    return tiny_gguf.write(folder / "chat.gguf", tiny_projector.KINDS[projector], more=more)


@contextlib.contextmanager
def tiny_server(
    folder: Path,
    load: str = "chat",
    on_demand: Any = "keep",
    architecture: str = "llama",
    cache_ram_mib: int = 0,
    cache_tokens: int | None = None,
    projector: str | None = None,
    context: int | None = None,
    **settings: Any,
) -> Iterator[Tiny]:
    """`architecture` is that of the model "chat", unless it has a `projector` of that kind."""
    rank = tiny_embedding_gguf.Pooling.RANK
    paths = {
        "chat": _chat(folder, architecture, projector),
        "embed": tiny_embedding_gguf.bert(folder / "embed.gguf"),
        "decoder": tiny_embedding_gguf.qwen3(folder / "decoder.gguf"),
        "rank": tiny_embedding_gguf.bert(folder / "rank.gguf", rank),
        "yes-or-no": tiny_embedding_gguf.qwen3(folder / "yes-or-no.gguf", rank),
    }
    registry = Registry()
    for name, path in paths.items():
        mmproj = FileSource(path=folder / "mmproj.gguf") if projector and name == "chat" else None
        registry.add("a test", ModelSpec(id=name, source=FileSource(path=path), description="made", mmproj=mmproj))
    options = ServerSettings(rate_limit=False, on_demand=on_demand, **settings)
    engine = {**ENGINE, "cache_ram_mib": cache_ram_mib, "cache_tokens": cache_tokens, "context": context}
    pool = Pool(registry, Store(folder / "store"), [("a test", engine)], on_demand=on_demand, grace=0.0)
    pool.load_now(load)
    app = create_app(pool, options, Keyring(options, KeyStore(folder / "keys.json")))
    with running(app) as url, httpx.Client(base_url=url, timeout=30) as client:
        yield Tiny(url, client, pool, paths)
