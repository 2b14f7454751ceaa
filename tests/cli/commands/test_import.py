from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from locallab import cli
from locallab.models import FileSource, Registry, user_path

MODEL = b"GGUF" + bytes(2_000_000)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, ["import", *arguments])


@pytest.fixture
def blob() -> Path:
    """Ollama's qwen2.5-coder:7b, a name that is an alias in the shipped registry."""
    root = Path(os.environ["OLLAMA_MODELS"])
    digest = hashlib.sha256(MODEL).hexdigest()
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}", "size": len(MODEL)}
    for name in ("qwen2.5-coder/7b", "llama3.2/3b"):
        manifest = root / "manifests" / "registry.ollama.ai" / "library" / name
        manifest.parent.mkdir(parents=True)
        manifest.write_text(json.dumps({"layers": [layer]}))
    (root / "blobs").mkdir()
    path = root / "blobs" / f"sha256-{digest}"
    path.write_bytes(MODEL)
    return path


def test_nothing_to_import() -> None:
    assert run().stdout == "No models of other programs found.\n"
    assert json.loads(run("--json").stdout) == []


def test_what_there_is_is_listed(blob: Path) -> None:
    lines = [line.split() for line in run().stdout.splitlines()]
    assert lines == [
        ["name", "size", "store", "imported", "as"],
        ["llama3.2:3b", "2", "MB", "ollama", "-"],
        ["qwen2.5-coder:7b", "2", "MB", "ollama", "-"],
    ]
    entry = {"name": "llama3.2:3b", "store": "ollama", "size": len(MODEL), "path": str(blob), "id": None}
    assert json.loads(run("--json").stdout)[0] == entry


def test_an_import_is_an_entry_of_the_users_registry(blob: Path) -> None:
    result = run("Llama3.2:3B")
    assert (result.exit_code, result.stdout) == (0, "llama3.2:3b is llama3.2:3b: locallab serve --model llama3.2:3b\n")
    spec = Registry.discover().get("llama3.2:3b")
    assert (spec.source, spec.size, spec.description) == (FileSource(blob), len(MODEL), "llama3.2:3b, from Ollama")
    text = user_path().read_text()
    assert json.loads(run("llama3.2:3b", "--json").stdout)["id"] == "llama3.2:3b"
    assert user_path().read_text() == text


def test_a_name_that_is_taken_gets_the_stores_behind_it(blob: Path) -> None:
    assert json.loads(run("qwen2.5-coder:7b", "--json").stdout)["id"] == "qwen2.5-coder:7b-ollama"
    assert Registry.discover().get("qwen2.5-coder:7b").id == "qwen2.5-coder:7b-q4_k_m"


def test_an_id_of_ones_own(blob: Path) -> None:
    assert json.loads(run("llama3.2:3b", "--id", "mine", "--json").stdout)["id"] == "mine"
    assert Registry.discover().get("mine").source == FileSource(blob)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["llama3.2"], "unknown model 'llama3.2'; did you mean llama3.2:3b?"),
        (["llama3.2:3b", "--id", "a/b"], "--id: 'a/b': an id has letters, digits"),
        (["llama3.2:3b", "--id", "qwen2.5-coder:7b"], "--id: 'qwen2.5-coder:7b' is already taken by qwen2.5-coder:7b-q4_k_m"),
        (["--id", "mine"], "--id: requires the NAME of a model"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_imported_is_one_line_and_status_2(blob: Path, arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"locallab: {message}")
    assert result.stderr.count("\n") == 1
    assert not user_path().exists()
