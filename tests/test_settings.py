from __future__ import annotations

import dataclasses
from pathlib import Path

import platformdirs
import pytest
from click.testing import CliRunner

from locallab import settings
from locallab.cli import main
from locallab.cli.settings_options import flag, layers
from locallab.errors import ConfigError
from locallab.settings import EngineSettings, ServerSettings

PAGE = Path(__file__).parents[1] / "locallab" / "cli" / "README.md"
CLASSES = (ServerSettings, EngineSettings)
NAMES = [name for cls in CLASSES for name, _, _ in settings.fields(cls)]
SECRET = [name for cls in CLASSES for name, annotated, _ in settings.fields(cls) if settings.is_secret(annotated)]


def test_defaults() -> None:
    assert settings.resolve(EngineSettings) == EngineSettings()
    assert settings.resolve(ServerSettings).host == "localhost"


def test_a_later_layer_wins_and_none_is_unset() -> None:
    found = settings.resolve(
        EngineSettings,
        ("models.yaml", {"context": 4096, "threads": 2, "kv_type": "q8_0"}),
        ("environment", {"context": "2048", "threads": None}),
        ("flags", {"context": 1024}),
    )
    assert (found.context, found.threads, found.kv_type) == (1024, 2, "q8_0")


def test_configured_values_without_the_defaults() -> None:
    layers = [("models.yaml", {"context": "4096"}), ("flags", {"context": None, "threads": 2})]
    assert settings.configured(EngineSettings, *layers) == {"context": 4096, "threads": 2}
    with pytest.raises(ConfigError, match="flags: unknown setting 'x'"):
        settings.configured(EngineSettings, ("flags", {"x": 1}))


def test_flags_win_over_the_environment_over_the_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALLAB_CONTEXT", "2048")
    monkeypatch.setenv("LOCALLAB_PARALLEL", "8")
    registry = ("models.yaml: x", {"context": 4096, "parallel": 4, "batch": 512})
    found = settings.resolve(EngineSettings, registry, *layers(EngineSettings, {"context": 1024, "parallel": None}))
    assert (found.context, found.parallel, found.batch) == (1024, 8, 512)


def test_environment_holds_what_is_set() -> None:
    environ = {"LOCALLAB_PORT": "9000", "LOCALLAB_HOST": "", "LOCALLAB_THREADS": "3", "PORT": "1"}
    assert settings.environment(ServerSettings, environ) == {"port": "9000"}
    assert settings.environment(EngineSettings, environ) == {"threads": "3"}


@pytest.mark.parametrize(("text", "value"), [("true", True), ("false", False), ("1", True), ("0", False)])
def test_a_switch_from_text(text: str, value: bool) -> None:
    assert settings.resolve(ServerSettings, ("environment", {"access_log": text})).access_log is value


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("1", True), ("0", False), ("ngrok", "ngrok"), ("cloudflared", "cloudflared")]
)
def test_a_switch_that_takes_words(text: str, value: bool | str) -> None:
    assert settings.resolve(ServerSettings, ("environment", {"tunnel": text})).tunnel == value


def test_an_unknown_key_fails_by_name() -> None:
    with pytest.raises(ConfigError, match=r"models\.yaml: unknown setting 'contex'; known: context, "):
        settings.resolve(EngineSettings, ("models.yaml", {"contex": 1}))


@pytest.mark.parametrize(
    ("cls", "name", "value"),
    [
        (ServerSettings, "port", 65536),
        (ServerSettings, "port", "-1"),
        (ServerSettings, "grace", -0.5),
        (ServerSettings, "log_format", "xml"),
        (ServerSettings, "access_log", "perhaps"),
        (ServerSettings, "tunnel", "perhaps"),
        (EngineSettings, "parallel", 0),
        (EngineSettings, "parallel", 193),
        (EngineSettings, "kv_type", "f11"),
        (EngineSettings, "threads", "two"),
        (EngineSettings, "gpu_layers", -2),
        (EngineSettings, "cache_disk", ""),
        (EngineSettings, "cache_disk_gib", 0),
        (EngineSettings, "cache_disk_gib", "nan"),
        (EngineSettings, "cache_disk_gib", "10GB"),
    ],
)
def test_a_wrong_value_names_its_origin_and_key(cls: type, name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"^environment: {name}: .*got {value!r}"):
        settings.resolve(cls, ("environment", {name: value}))


def test_a_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALLAB_KV_TYPE", "f11")
    with pytest.raises(ConfigError, match=r"^LOCALLAB_KV_TYPE: "):
        settings.resolve(EngineSettings, *layers(EngineSettings, {}))


@pytest.mark.parametrize("cls", CLASSES)
def test_settings_are_frozen_and_default_to_valid_values(cls: type) -> None:
    found = dataclasses.asdict(settings.resolve(cls))
    assert settings.resolve(cls, ("itself", found)) == cls()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(cls(), next(iter(found)), None)


def test_no_two_settings_share_a_name() -> None:
    assert len(set(NAMES)) == len(NAMES)


@pytest.mark.parametrize("cls", CLASSES)
def test_every_setting_is_described(cls: type) -> None:
    assert [name for name, annotated, _ in settings.fields(cls) if not settings.describe(annotated)] == []


def test_every_setting_is_a_flag_unless_it_is_a_secret() -> None:
    text = CliRunner().invoke(main, ["serve", "--help"]).output
    assert [name for name in NAMES if f"{flag(name)} " not in text] == SECRET == ["ngrok_token", "cloudflared_token"]


def test_every_setting_is_in_the_page_of_settings() -> None:
    text = PAGE.read_text().partition("<!-- settings -->")[2].partition("<!-- /settings -->")[0]
    shown = {name: f"`LOCALLAB_{name.upper()}`" if name in SECRET else f"`{flag(name)}" for name in NAMES}
    assert [name for name in NAMES if shown[name] not in text] == []


def test_cache_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert settings.cache_directory("auto") == Path("/caches/locallab/prefixes")
    assert settings.cache_directory("~/prefixes") == Path.home() / "prefixes"


def test_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALLAB_HOME", "~/lab")
    assert settings.home() == Path.home() / "lab"
    monkeypatch.delenv("LOCALLAB_HOME")
    assert settings.home() == Path(platformdirs.user_data_dir("locallab", appauthor=False))
