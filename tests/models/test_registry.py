from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

import msgspec
import pytest

from locallab.errors import ConfigError, NotServed, UnknownModel
from locallab.models import FileSource, HubSource, Registry, adhoc, default_path
from locallab.models import registry as module
from locallab.models.spec import ModelId
from locallab.models.store import Store
from locallab.settings import EngineSettings, resolve

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


HUB = "hub, repo: acme/tiny, file: tiny.gguf"
PIECE = "{package: p, version: '1', file: f}"

WRONG = {
    "unknown-key": (ENTRY + "    contxt: 1\n", "models.yaml:7: tiny:1m: contxt: unknown key"),
    "unknown-source-key": (ENTRY.replace("repo:", "repos:"), "models.yaml:4: tiny:1m: source.repos: unknown key"),
    "missing-key": (ENTRY.replace("    description: tiny\n", ""), "models.yaml:2: tiny:1m: description: is missing"),
    "missing-source-key": (ENTRY.replace("repo: acme/tiny, ", ""), "models.yaml:4: tiny:1m: source.repo: is missing"),
    "unknown-kind": (
        ENTRY.replace("hub", "git"),
        "models.yaml:4: tiny:1m: source.kind: Invalid value 'git'; known: file, hub, pypi",
    ),
    "missing-kind": (ENTRY.replace("kind: hub, ", ""), "tiny:1m: source.kind: is missing"),
    "wrong-type": (ENTRY.replace("128", "many"), "models.yaml:6: tiny:1m: context: Expected `int | null`, got `str`"),
    "not-positive": (ENTRY.replace("128", "0"), "tiny:1m: context: Expected `int` >= 1"),
    "wrong-size": (
        ENTRY.replace("98 MB", "98 miles"),
        "models.yaml:5: tiny:1m: size: expected bytes or a figure like '4.7 GB', got '98 miles'",
    ),
    "wrong-id": (ENTRY.replace("tiny:1m", "a/b"), "models.yaml:2: a/b: id: Expected `str` matching regex"),
    "missing-id": (ENTRY.replace("id: tiny:1m\n    ", ""), "models.yaml:2: models[0]: id: is missing"),
    "wrong-alias": (ENTRY + "    aliases: [ok, a/b]\n", "models.yaml:7: tiny:1m: aliases[1]: Expected `str` matching regex"),
    "option-as-package": (
        ENTRY.replace(HUB, "pypi, package: --pre, version: '1', file: f, sha256: x"),
        "tiny:1m: source.package: Expected `str` matching regex",
    ),
    "short-digest": (
        ENTRY.replace(HUB, "pypi, package: p, version: '1', file: f, sha256: abc"),
        "tiny:1m: source.sha256: Expected `str` matching regex",
    ),
    "no-package": (
        ENTRY.replace(HUB, f"pypi, file: f, sha256: {'a' * 64}"),
        "models.yaml:4: tiny:1m: source: name either a package and its version, or pieces",
    ),
    "package-and-pieces": (
        ENTRY.replace(HUB, f"pypi, package: p, version: '1', file: f, sha256: {'a' * 64}, pieces: [{PIECE}]"),
        "models.yaml:4: tiny:1m: source: name either a package and its version, or pieces",
    ),
    "version-beside-pieces": (
        ENTRY.replace(HUB, f"pypi, version: '1', file: f, sha256: {'a' * 64}, pieces: [{PIECE}]"),
        "models.yaml:4: tiny:1m: source: name either a package and its version, or pieces",
    ),
    "option-as-a-piece": (
        ENTRY.replace(HUB, f"pypi, file: f, sha256: {'a' * 64}, pieces: [{PIECE.replace(': p', ': --pre')}]"),
        "models.yaml:4: tiny:1m: source.pieces[0].package: Expected `str` matching regex",
    ),
    "path-not-text": (ENTRY.replace(HUB, "file, path: 7"), "tiny:1m: source.path: Expected a path, got 7"),
    "file-and-quantization": (
        ENTRY.replace("file: tiny.gguf", "file: tiny.gguf, quantization: Q8_0"),
        "models.yaml:4: tiny:1m: source.quantization: the file is named already",
    ),
    "draft-file-and-quantization": (
        ENTRY + "    draft: {kind: hub, repo: a/b, file: x.gguf, quantization: Q8_0}\n",
        "models.yaml:7: tiny:1m: draft.quantization: the file is named already",
    ),
    "wrong-mmproj": (ENTRY + "    mmproj: {kind: hub}\n", "models.yaml:7: tiny:1m: mmproj.repo: is missing"),
    "unknown-modality": (
        ENTRY + "    modalities: [text, video]\n",
        "models.yaml:7: tiny:1m: modalities[1]: Invalid enum value 'video'; known: text, image, audio",
    ),
    "modalities-without-text": (ENTRY + "    modalities: [audio]\n", "models.yaml:7: tiny:1m: modalities: must contain text"),
    "image-without-projector": (
        ENTRY + "    modalities: [text, image]\n",
        "models.yaml:7: tiny:1m: modalities: images and audio need a projector: name its source as mmproj",
    ),
    "unknown-memory-class": (
        ENTRY + "    recommended: [gpu-24, gpu-9]\n",
        "tiny:1m: recommended[1]: Invalid enum value 'gpu-9'; known: ram-16, ram-64, gpu-8, gpu-16, gpu-24, gpu-80",
    ),
    "recommended-not-a-list": (
        ENTRY + "    recommended: gpu-8\n",
        "tiny:1m: recommended: Expected `bool | array`",
    ),
    "wrong-memory": (ENTRY + "    memory: much\n", "models.yaml:7: tiny:1m: memory: expected bytes or a figure like '4.7 GB'"),
    "memory-below-size": (ENTRY + "    memory: 97 MB\n", "models.yaml:7: tiny:1m: memory: must have room for the file"),
    "active-above-size": (
        ENTRY + "    active: 99 MB\n",
        "tiny:1m: active: a token cannot read more than the size",
    ),
    "empty-license": (ENTRY + "    license: ''\n", "models.yaml:7: tiny:1m: license: Expected `str` of length >= 1"),
    "key-twice": (ENTRY + "    context: 256\n", "models.yaml:7: tiny:1m: context: appears twice"),
    "source-key-twice": (
        ENTRY.replace("file: tiny.gguf", "file: tiny.gguf, repo: acme/other"),
        "models.yaml:4: tiny:1m: source.repo: appears twice",
    ),
    "unknown-setting": (
        ENTRY + "    settings: {layers: 3}\n",
        "models.yaml:7: tiny:1m: settings: unknown setting 'layers'; known: context",
    ),
    "wrong-setting": (
        ENTRY + "    settings:\n      kv_type: f16\n      gpu_layers: few\n",
        "models.yaml:9: tiny:1m: settings: gpu_layers: Expected `int`",
    ),
    "context-twice": (ENTRY + "    settings: {context: 3}\n", "models.yaml:7: tiny:1m: settings.context: set it once"),
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
    "not-yaml-inside": (ENTRY.replace("tiny\n", "!!python/name:os.system tiny\n", 1), "models.yaml:2: not valid YAML"),
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


def test_a_later_file_overrides_an_entry_in_its_place(tmp_path: Path) -> None:
    small = ENTRY.lstrip("\n").replace("tiny:1m", "small")
    first = write(tmp_path, "models:" + ENTRY + "    aliases: [tiny]\n" + small)
    second = write(tmp_path, "models:" + ENTRY.replace("tiny:1m", "TINY:1M").replace("128", "256"), "own.yaml")
    registry = Registry.load(first, second)
    assert [(spec.id, spec.context) for spec in registry] == [("TINY:1M", 256), ("small", 128)]
    with pytest.raises(UnknownModel):
        registry.get("tiny")  # the alias was the overridden entry's


def test_an_alias_may_move_from_an_overridden_entry_to_another(tmp_path: Path) -> None:
    first = write(tmp_path, "models:" + ENTRY + "    aliases: [best]\n")
    own = ENTRY.replace("tiny:1m", "own") + "    aliases: [best]\n"
    second = write(tmp_path, "models:" + own + ENTRY.lstrip("\n"), "own.yaml")
    assert Registry.load(first, second).get("best").id == "own"


def test_two_files_that_claim_the_same_alias_are_both_named(tmp_path: Path) -> None:
    first = write(tmp_path, "models:" + ENTRY + "    aliases: [best]\n")
    second = write(tmp_path, "models:" + ENTRY.replace("tiny:1m", "own") + "    aliases: [best]\n", "own.yaml")
    with pytest.raises(ConfigError, match=r"own\.yaml:2: own: the name 'best' is taken already by tiny:1m \(.*models\.yaml:2"):
        Registry.load(first, second)


def test_discover_reads_the_shipped_file_then_the_users_then_further_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCALLAB_CONFIG", str(tmp_path / "config"))
    shipped = [spec.id for spec in Registry.load(default_path())]
    assert [spec.id for spec in Registry.discover()] == shipped
    (tmp_path / "config").mkdir()
    write(tmp_path / "config", "models:" + ENTRY.replace("tiny:1m", "mine"))
    write(tmp_path, "models:" + ENTRY.replace("tiny:1m", shipped[0]), "a.yaml")
    write(tmp_path, "models:" + ENTRY.replace("tiny:1m", "mine").replace("128", "64"), "b.yaml")
    registry = Registry.discover(f"{tmp_path}/a.yaml, {tmp_path}/b.yaml,")
    assert [spec.id for spec in registry] == [*shipped, "mine"]
    assert (registry.default.context, registry.get("mine").context) == (128, 64)
    with pytest.raises(ConfigError, match=r"none\.yaml: No such file"):
        Registry.discover(f"{tmp_path}/none.yaml")


HUB_NAMES = {
    "hf:acme/tiny-GGUF": ("acme--tiny-GGUF", HubSource("acme/tiny-GGUF")),
    "hf:acme/tiny-GGUF:Q4_K_M": ("acme--tiny-GGUF:Q4_K_M", HubSource("acme/tiny-GGUF", quantization="Q4_K_M")),
    "hf:acme/tiny-GGUF:q4_k_m": ("acme--tiny-GGUF:Q4_K_M", HubSource("acme/tiny-GGUF", quantization="Q4_K_M")),
    "HF:acme/tiny:sub/tiny-q8_0.gguf": ("acme--tiny:sub-tiny-q8_0", HubSource("acme/tiny", file="sub/tiny-q8_0.gguf")),
    "hf.co/acme/tiny-GGUF:Q4_K_M": ("acme--tiny-GGUF:Q4_K_M", HubSource("acme/tiny-GGUF", quantization="Q4_K_M")),
    "huggingface.co/acme/tiny-GGUF:latest": ("acme--tiny-GGUF", HubSource("acme/tiny-GGUF")),
    "https://huggingface.co/acme/tiny-GGUF/": ("acme--tiny-GGUF", HubSource("acme/tiny-GGUF")),
    "https://huggingface.co/acme/tiny-GGUF/tree/main": ("acme--tiny-GGUF", HubSource("acme/tiny-GGUF")),
    "https://huggingface.co/acme/tiny/resolve/main/sub/tiny-q8_0.gguf?download=true": (
        "acme--tiny:sub-tiny-q8_0",
        HubSource("acme/tiny", file="sub/tiny-q8_0.gguf"),
    ),
    "https://HF.co/acme/tiny/blob/main/t.gguf": ("acme--tiny:t", HubSource("acme/tiny", file="t.gguf")),
}


@pytest.mark.parametrize(("name", "expected"), HUB_NAMES.items(), ids=HUB_NAMES)
def test_a_name_of_the_hub_gets_an_entry(tmp_path: Path, name: str, expected: tuple[str, HubSource]) -> None:
    registry = load(tmp_path, ENTRY)
    spec = registry.resolve(name)
    assert (spec.id, spec.source) == expected
    assert registry.get(name) is registry.get(spec.id) is registry.resolve(name) is spec
    assert len(registry) == 2
    assert msgspec.convert(spec.id, ModelId) == spec.id
    assert all(value is None for value in spec.engine_settings.values())


def test_a_request_may_name_a_registered_model_by_its_repository(tmp_path: Path) -> None:
    hub = "{kind: hub, repo: acme/tiny-GGUF, quantization: Q4_K_M, revision: abc}"
    registry = load(tmp_path, f"\n  - {{id: mine, description: d, source: {hub}}}\n")
    for name in ("hf.co/acme/tiny-GGUF:Q4_K_M", "hf:acme/tiny-GGUF:q4_k_m", "https://huggingface.co/acme/tiny-GGUF:Q4_K_M"):
        assert registry.get(name).id == "mine"
    with pytest.raises(NotServed, match=r"^unknown model 'hf:acme/other': .* start the server with --model hf:acme/other, or"):
        registry.get("hf.co/acme/other")
    with pytest.raises(UnknownModel, match=r"^unknown model 'hf:nothing'$"):
        registry.get("hf.co/nothing")


@pytest.mark.parametrize("name", ["hf:tiny", "hf:a/b/c", "hf:acme/tiny:", "hf:../x", "hf:acme/tiny: Q4"])
def test_a_wrong_name_of_the_hub_says_what_would_be_right(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"model: 'hf:.*expected hf:owner/repo, hf:owner/repo:QUANTIZATION or hf:"):
        load(tmp_path, ENTRY).resolve(name)


@pytest.mark.parametrize(
    ("name", "model_id"),
    [
        ("Tiny-Q4.gguf", "Tiny-Q4"),
        ("my model (1).GGUF", "my-model-1"),
        ("--.gguf", "model"),
        ("sub/blob", "blob"),
        ("small.gguf", "small-2"),
    ],
)
def test_the_path_of_a_file_gets_an_entry(tmp_path: Path, name: str, model_id: str) -> None:
    registry = load(tmp_path, ENTRY.replace("tiny:1m", "small"))
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"GGUF")
    spec = registry.resolve(str(path))
    assert (spec.id, spec.source, spec.size) == (model_id, FileSource(path), 4)
    assert registry.get(model_id) is registry.resolve(str(path)) is spec


def test_any_file_of_a_split_model_stands_for_all(tmp_path: Path) -> None:
    for index in (1, 2):
        (tmp_path / f"big-0000{index}-of-00002.gguf").write_bytes(b"GGUF" * index)
    spec = load(tmp_path, ENTRY).resolve(str(tmp_path / "big-00002-of-00002.gguf"))
    assert (spec.source, spec.size) == (FileSource(tmp_path / "big-00001-of-00002.gguf"), 12)


def test_a_path_without_a_file_is_named(tmp_path: Path) -> None:
    registry = load(tmp_path, ENTRY)
    with pytest.raises(ConfigError, match=f"model: there is no file {tmp_path}/x.gguf$"):
        registry.resolve(str(tmp_path / "x.gguf"))
    with pytest.raises(ConfigError, match=r"there is no file .*; for a repository on the Hub write hf:acme/tiny"):
        registry.resolve("acme/tiny")


def test_a_name_of_the_registry_is_resolved_as_it_is(tmp_path: Path) -> None:
    registry = load(tmp_path, ENTRY)
    assert registry.resolve("Tiny:1M") is registry.default
    with pytest.raises(UnknownModel):
        registry.resolve("nothing")


def test_a_relative_path_starts_at_the_registry_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    entry = ENTRY.replace("hub, repo: acme/tiny, file: tiny.gguf", "file, path: {}")
    for given, expected in [("w/t.gguf", tmp_path / "w/t.gguf"), ("/w.gguf", "/w.gguf"), ("~/w.gguf", "/home/somebody/w.gguf")]:
        assert load(tmp_path, entry.replace("{}", given)).default.source == FileSource(path=Path(expected))


def test_settings_of_an_entry_are_a_layer_of_engine_settings(tmp_path: Path) -> None:
    spec = load(tmp_path, ENTRY + "    settings: {kv_type: q8_0, gpu_layers: 7}\n").default
    settings = resolve(EngineSettings, ("models.yaml", spec.engine_settings), ("flags", {"gpu_layers": "3"}))
    assert (settings.context, settings.kv_type, settings.gpu_layers) == (128, "q8_0", 3)


SELF = """\
    mmproj: {kind: hub, repo: acme/tiny, file: eyes.gguf}
    license: apache-2.0
    memory: 2 GB
    active: 30 MB
    recommended: [gpu-8, ram-16]
    modalities: [text, image, audio]
"""


def test_what_an_entry_says_of_itself(tmp_path: Path) -> None:
    spec = load(tmp_path, ENTRY + SELF).default
    assert (spec.license, spec.memory, spec.active) == ("apache-2.0", 2 * 10**9, 30 * 10**6)
    assert (spec.recommended, spec.takes) == (("gpu-8", "ram-16"), ("text", "image", "audio"))


def test_a_variant_has_what_its_base_says(tmp_path: Path) -> None:
    registry = load(tmp_path, ENTRY + SELF + "  - {id: mine, base: 'tiny:1m', recommended: [gpu-80]}\n")
    base, mine = registry.get("tiny:1m"), registry.get("mine")
    assert (mine.license, mine.memory, mine.active, mine.takes) == (base.license, base.memory, base.active, base.takes)
    assert mine.recommended == ("gpu-80",)


def test_what_a_prompt_may_hold_follows_from_a_projector(tmp_path: Path) -> None:
    assert load(tmp_path, ENTRY).default.takes == ("text",)
    assert load(tmp_path, ENTRY + SELF.partition("\n")[0] + "\n").default.takes == ("text", "image")


def test_the_bundled_file_of_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "lib" / "site-packages"
    info = site / "locallab_server-9.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: locallab-server\nVersion: 9\n")
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


VARIANT = "\n  - {id: 'tutor:1m', base: 'tiny:1m', system: Explain it., settings: {temperature: 0.3}, template: own.jinja}\n"


def test_a_variant_is_its_base_with_keys_of_its_own(tmp_path: Path) -> None:
    registry = load(tmp_path, ENTRY + "    settings: {temperature: 0.7, top_k: 5}\n" + VARIANT)
    base, variant = registry.get("tiny:1m"), registry.get("tutor:1m")
    assert (variant.source, variant.size, variant.context) == (base.source, base.size, 128)
    assert variant.settings == {"temperature": 0.3, "top_k": 5} and base.settings["temperature"] == 0.7
    assert (variant.description, variant.system, variant.template) == ("tiny", "Explain it.", tmp_path / "own.jinja")
    assert (base.system, base.base, variant.base) == (None, None, "tiny:1m")
    assert Store(tmp_path / "store").folder(variant) == Store(tmp_path / "store").folder(base)


def test_a_variant_of_a_variant_may_come_first(tmp_path: Path) -> None:
    entries = "\n  - {id: a, base: TUTOR:1m, context: 64}" + VARIANT + ENTRY
    spec = load(tmp_path, entries).get("a")
    assert (spec.base, spec.system, spec.context) == ("tiny:1m", "Explain it.", 64)
    assert [each.id for each in load(tmp_path, entries)] == ["a", "tutor:1m", "tiny:1m"]


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ("\n  - {id: a, base: b}" + ENTRY, "models.yaml:2: a: base: there is no entry 'b'"),
        ("\n  - {id: a, base: b}\n  - {id: b, base: a}" + ENTRY, "base: a would be its own base"),
        (
            "\n  - {id: a, base: 'tiny:1m', source: {kind: file, path: x}}" + ENTRY,
            "a: base: has the files: leave out source, or base",
        ),
        ("\n  - {id: a, base: 'tiny:1m', size: 5}" + ENTRY, "a: size: unknown key"),
        ("\n  - {id: a, base: 'tiny:1m', settings: {temperature: -1}}" + ENTRY, "settings: temperature: Expected `float` >= 0"),
    ],
)
def test_a_wrong_variant(tmp_path: Path, entries: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(reason)):
        load(tmp_path, entries)


ADAPTERS = "    adapters:\n      - {name: pirate, source: {kind: file, path: pirate.gguf}, scale: 0.5}\n"


def test_an_entry_with_an_adapter_has_a_name_with_it(tmp_path: Path) -> None:
    more = ENTRY.replace("tiny:1m", "big") + ADAPTERS.replace("pirate", "Poet") + "    aliases: [large]\n"
    registry = load(tmp_path, ENTRY + ADAPTERS + more)
    assert [spec.id for spec in registry] == ["tiny:1m", "big"]
    assert [spec.id for spec in registry.with_adapters] == ["tiny:1m", "tiny:1m:pirate", "big", "big:Poet"]
    found = registry.get("Tiny:1M:Pirate")
    assert (found.loaded_as, registry.get("LARGE:poet").loaded_as) == ("tiny:1m", "big")
    assert found.parts["lora-pirate"] == FileSource(tmp_path / "pirate.gguf") and found.adapters[0].scale == 0.5
    assert Store(tmp_path).folder(found) == Store(tmp_path).folder(registry.get("tiny:1m"))
    with pytest.raises(UnknownModel, match="tiny:1m:pirate"):
        registry.get("tiny:1m:pirat")


def test_a_variant_has_the_adapters_of_its_base(tmp_path: Path) -> None:
    registry = load(tmp_path, ENTRY + ADAPTERS + "  - {id: 'tutor', base: 'tiny:1m', system: Explain.}\n")
    found = registry.get("tutor:pirate")
    assert (found.loaded_as, found.base, found.system) == ("tutor", "tiny:1m", "Explain.")


TWICE = ADAPTERS + ADAPTERS.partition("\n")[2].replace("pirate,", "PIRATE,")
WRONG_ADAPTERS = {
    "name": (ADAPTERS.replace("name: pirate", "name: a:b"), r"tiny:1m: adapters\[0\].name: Expected `str` matching regex"),
    "scale": (ADAPTERS.replace("0.5", "1000"), r"tiny:1m: adapters\[0\].scale: Expected `float` <= 100"),
    "key": (ADAPTERS.replace("scale", "weight"), r"tiny:1m: adapters\[0\].weight: unknown key"),
    "no source": (ADAPTERS.replace("source: {kind: file, path: pirate.gguf}, ", ""), r"adapters\[0\].source: is missing"),
    "twice": (TWICE, "the name 'tiny:1m:PIRATE' is taken already by tiny:1m:pirate"),
    "a file and a quantization": (
        ADAPTERS.replace("kind: file, path: pirate.gguf", "kind: hub, repo: a/b, file: x.gguf, quantization: F16"),
        "tiny:1m: adapters.quantization: the file is named already",
    ),
}


@pytest.mark.parametrize(("text", "reason"), WRONG_ADAPTERS.values(), ids=WRONG_ADAPTERS)
def test_a_wrong_adapter_fails_by_name(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        load(tmp_path, ENTRY + text)


def test_no_entry_has_the_name_of_another_with_an_adapter(tmp_path: Path) -> None:
    other = ENTRY.replace("tiny:1m", "tiny:pirate")
    with pytest.raises(ConfigError, match="the name 'tiny:pirate' is taken already by tiny:pirate"):
        load(tmp_path, ENTRY.replace("tiny:1m", "tiny") + ADAPTERS + other)


@pytest.mark.parametrize(
    ("text", "name", "file", "scale"),
    [
        ("pirate={}/a.gguf", "pirate", "a.gguf", 1.0),
        ("pirate={}/a.gguf:0.5", "pirate", "a.gguf", 0.5),
        ("p.1={}/a:b.gguf:-2", "p.1", "a:b.gguf", -2.0),
        ("pirate={}/a:b.gguf", "pirate", "a:b.gguf", 1.0),
    ],
)
def test_an_adapter_from_a_flag(tmp_path: Path, text: str, name: str, file: str, scale: float) -> None:
    (tmp_path / file).write_bytes(b"GGUF")
    [found] = adhoc.adapters(text.format(tmp_path))
    assert adhoc.adapters(f"{text},{text}".format(tmp_path, tmp_path)) == (found, found) and adhoc.adapters(None) == ()
    assert (found.name, found.source, found.scale) == (name, FileSource(tmp_path / file), scale)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a.gguf", "lora: 'a.gguf': expected NAME=FILE or NAME=FILE:SCALE"),
        ("pirate=", "lora: 'pirate=': expected NAME=FILE"),
        ("=a.gguf", "lora: '=a.gguf': expected NAME=FILE"),
        ("a:b=c.gguf", "expected NAME=FILE"),
        ("pirate=c.gguf:101", "a scale from -100 to 100"),
        ("pirate=/no/such.gguf", "lora: pirate: there is no file /no/such.gguf"),
    ],
)
def test_a_wrong_adapter_from_a_flag_fails_by_name(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(reason)):
        adhoc.adapters([text])


def test_the_spelling_by_which_a_model_was_named_has_its_adapters_too(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    registry = load(tmp_path, ENTRY)
    spec = registry.resolve("hf:acme/other:Q8_0")
    new = registry.adapt(spec, adhoc.adapters([f"pirate={tmp_path}/a.gguf"]))
    assert registry.get("HF:acme/other:q8_0:pirate").loaded_as == new.id == spec.id
    assert registry.get(f"{spec.id}:pirate").loaded_as == spec.id
    assert registry.adapt(new, ()) is new
    with pytest.raises(ConfigError, match=r"lora: the name '.*:pirate' is taken already"):
        registry.adapt(new, adhoc.adapters([f"pirate={tmp_path}/a.gguf"]))
