"""The configuration of a cluster: which models it has, in how many replicas, and the server in front of them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import yaml
from msgspec import Meta

from locallab import settings
from locallab.errors import ConfigError
from locallab.models import Registry, adhoc
from locallab.settings import EngineSettings, ServerSettings

LONGEST_FILE = 1 << 20

ELSEWHERE = {
    "model": "list it under `models`",
    "lora": "it belongs to a model: put `lora` there",
    "on_demand": "a cluster has the models of its configuration, and loads no others",
    "keep_alive": "replicas leave with `replicas: {min: 0, ...}`",
}
"""Settings of a server that a cluster has no use for, and what to do instead."""

Count = Annotated[int, Meta(ge=0, le=10_000)]
Most = Annotated[int, Meta(ge=1, le=10_000)]


class Scaling(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Bounds of the number of replicas, which follows the work that waits: `queued_tokens` for each replica, by default what a
    CPU computes in some ten seconds. A replica leaves when there was too little for `idle_seconds`, and the last one where
    `min` is 0."""

    min: Count = 1
    max: Most = 1
    queued_tokens: Annotated[int, Meta(ge=1)] = 4096
    idle_seconds: Annotated[float, Meta(ge=0)] = 300.0
    start_seconds: Annotated[float, Meta(ge=0)] = 5.0


class ModelConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A model and its replicas; `cpus`, `gpus` and `memory_gib` are what each of them takes of its machine."""

    model: Annotated[str, Meta(min_length=1)]
    replicas: Most | Scaling = 1
    cpus: Annotated[float, Meta(ge=0)] = 1.0
    gpus: Annotated[float, Meta(ge=0)] = 0.0
    memory_gib: Annotated[float, Meta(ge=0)] = 0.0
    lora: str | None = None
    settings: dict[str, Any] = msgspec.field(default_factory=dict)

    @property
    def scaling(self) -> Scaling:
        return self.replicas if isinstance(self.replicas, Scaling) else Scaling(min=self.replicas, max=self.replicas)


class ClusterConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The models, the first of which answers requests that name none; the settings of the server; the address of a Ray cluster
    that runs already ("auto": the one of this machine), or none to start one here. `fronts` is the number of processes that
    `serve run` puts in front."""

    models: Annotated[list[ModelConfig], Meta(min_length=1)]
    server: dict[str, Any] = msgspec.field(default_factory=dict)
    ray: str | None = None
    fronts: Most = 1


def read(path: str) -> ClusterConfig:
    """Return the configuration in a file. Raises ConfigError, which names the file and the field."""
    try:
        text = Path(path).expanduser().read_bytes()[: LONGEST_FILE + 1]
    except OSError as error:
        raise ConfigError(f"cluster: {path} cannot be read: {error.strerror}") from None
    if len(text) > LONGEST_FILE:
        raise ConfigError(f"cluster: {path} is larger than {LONGEST_FILE >> 20} MiB: it is no configuration")
    try:
        found = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"cluster: {path} is not YAML: {' '.join(str(error).split())}") from None
    return parse(found, path)


def parse(found: object, where: str) -> ClusterConfig:
    """Return a configuration that was read from `where`, with its settings checked. Raises ConfigError."""
    try:
        config = msgspec.convert(found, ClusterConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {error}; {_known(str(error))}") from None
    _check(f"{where}: server", config.server, ServerSettings)
    for name in config.server:
        if name in ELSEWHERE:
            raise ConfigError(f"{where}: server: {name}: {ELSEWHERE[name]}")
    settings.resolve(ServerSettings, (f"{where}: server", config.server))
    names: set[str] = set()
    for at, each in enumerate(config.models):
        place = f"{where}: models[{at}]"
        _check(f"{place}: settings", each.settings, EngineSettings)
        settings.resolve(EngineSettings, (f"{place}: settings", each.settings))
        adhoc.adapters(each.lora)
        if each.scaling.max < each.scaling.min:
            raise ConfigError(f"{place}: replicas: max must be at least min, got {each.scaling.max} and {each.scaling.min}")
        if each.model in names:
            raise ConfigError(f"{place}: model: {each.model!r} is listed already; raise its replicas instead")
        names.add(each.model)
    return config


def of(models: Sequence[str] = (), replicas: int = 1) -> ClusterConfig:
    """Return a configuration of these models, by default the registry's own default."""
    names = models or (Registry.discover().default.id,)
    return ClusterConfig(models=[ModelConfig(model=each, replicas=replicas) for each in names])


def for_serve(config: ClusterConfig) -> dict[str, Any]:
    """Return a configuration for `serve deploy`. Its proxies listen where the server would."""
    server = settings.resolve(ServerSettings, ("server", config.server))
    host = "127.0.0.1" if server.host == "localhost" else server.host
    application = {
        "name": "locallab",
        "route_prefix": "/",
        "import_path": "locallab.cluster:app",
        "args": as_dict(config),
    }
    return {"http_options": {"host": host, "port": server.port}, "applications": [application]}


def server_settings(config: ClusterConfig, where: str, *layers: tuple[str, Mapping[str, Any]]) -> ServerSettings:
    """Return the settings of the front: those of the file, then the `layers`. Raises ConfigError."""
    return settings.resolve(ServerSettings, (f"{where}: server", config.server), *layers)


def served(config: ClusterConfig, registry: Registry) -> Mapping[str, str]:
    """Return the ids in the registry of the models, by their names in the file. Raises UnknownModel, ConfigError."""
    return {each.model: registry.resolve(each.model).id for each in config.models}


def _check(where: str, values: Mapping[str, Any], cls: type) -> None:
    known = [name for name, _, _ in settings.fields(cls)]
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(str(name), known)
            hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
            raise ConfigError(f"{where}: unknown setting {name!r}; {hint}")


def _known(error: str) -> str:
    """Return the fields that there are at the place that msgspec's message names."""
    kind: type[msgspec.Struct] = ClusterConfig
    if "$.models" in error:
        kind = Scaling if ".replicas" in error else ModelConfig
    return f"known there: {', '.join(kind.__struct_fields__)}"


def as_dict(config: ClusterConfig) -> dict[str, Any]:
    """Return the configuration as it is in a file, without what is left open."""
    found: dict[str, Any] = msgspec.to_builtins(config)
    return _without(found, ClusterConfig(models=config.models)) | {
        "models": [_without(msgspec.to_builtins(each), ModelConfig(model=each.model)) for each in config.models]
    }


def _without(found: dict[str, Any], plain: msgspec.Struct) -> dict[str, Any]:
    defaults = msgspec.to_builtins(plain)
    return {name: value for name, value in found.items() if value != defaults[name] or name == "model"}


def with_flags(config: ClusterConfig, values: Mapping[str, Any]) -> ClusterConfig:
    """Return the configuration with these engine settings for every model, ahead of the file's."""
    given = {name: value for name, value in values.items() if value is not None}
    models: Sequence[ModelConfig] = [
        msgspec.structs.replace(each, settings={**each.settings, **given}) for each in config.models
    ]
    return msgspec.structs.replace(config, models=list(models))
