from __future__ import annotations

from pathlib import Path

import pytest

from locallab.errors import ConfigError
from locallab.models import FileSource, HubSource, ModelSpec, Registry
from locallab.models.registry_file import append, with_entry

SPEC = ModelSpec(
    id="own:1b",
    source=FileSource(Path("/weights/öwn file: #1.gguf")),
    size=5,
    description="it's mine: yes",
    draft=HubSource("acme/tiny"),
    settings={"kv_type": "q8_0"},
)
ENTRY = "- {id: a, description: a, source: {kind: file, path: a.gguf}}\n"

LAYOUTS = {
    "indented": f"# mine\nmodels:\n  # first\n  {ENTRY}  # end\n",
    "flush": f"models:\n{ENTRY}",
    "deep": f"models:\n        {ENTRY}",
    "no newline at the end": f"models:\n  {ENTRY}".rstrip("\n"),
    "long": "models:\n  - id: a\n    description: >-\n      one\n      b\n    source:\n      kind: file\n      path: a.gguf\n",
}


@pytest.mark.parametrize("text", LAYOUTS.values(), ids=LAYOUTS)
def test_an_entry_is_added_and_the_rest_stays(tmp_path: Path, text: str) -> None:
    path = tmp_path / "models.yaml"
    path.write_text(text)
    append(path, SPEC)
    assert path.read_text().startswith(text)
    assert [spec.id for spec in Registry.load(path)] == ["a", "own:1b"]
    assert Registry.load(path).get("own:1b") == SPEC
    assert [each.name for each in tmp_path.iterdir()] == ["models.yaml"]


def test_a_file_is_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "models.yaml"
    append(path, SPEC)
    assert list(Registry.load(path)) == [SPEC]
    assert path.read_text().startswith("# Models of your own")


WRONG = {
    "flow": (f"models: [{ENTRY[2:].strip()}]\n", "write the list of models one entry below another"),
    "taken": (f"models:\n  {ENTRY}".replace("id: a", "id: OWN:1B"), "the id 'own:1b' is taken already"),
    "broken": ("models: [\n", "not valid YAML"),
    "ended": (f"models:\n  {ENTRY}...\n", "write the list of models one entry below another"),
}


@pytest.mark.parametrize(("text", "message"), WRONG.values(), ids=WRONG)
def test_a_file_that_cannot_take_an_entry_is_left_alone(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "models.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"models.yaml: {message}"):
        append(path, SPEC)
    assert path.read_text() == text


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"models\.yaml: (Not a directory|File exists)"):
        append(tmp_path / "file" / "models.yaml", SPEC)


def test_what_an_entry_does_not_say_is_left_out() -> None:
    spec = ModelSpec(id="a", source=FileSource(Path("/a.gguf")), description="a")
    added = with_entry("models:\n", spec).removeprefix("models:\n")
    assert added == "  - id: a\n    description: a\n    source: {kind: file, path: /a.gguf}\n"
