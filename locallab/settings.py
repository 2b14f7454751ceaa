"""Settings as frozen dataclasses. Flags, environment variables (LOCALLAB_*) and the reference table derive from them.

A value is looked for in this order, later wins: the default here, the model's entry in models.yaml, the environment, the flags.
"""

from __future__ import annotations

import dataclasses
import os
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import platformdirs
from msgspec import Meta

from locallab.errors import ConfigError

KvType = Literal["f32", "f16", "bf16", "q8_0", "q4_0"]
LogLevel = Literal["debug", "info", "warning", "error"]
Settings = TypeVar("Settings")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """How one model is loaded and scheduled."""

    context: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(description="tokens one request may use, prompt and answer; default: as models.yaml says"),
    ] = None
    kv_tokens: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(description="tokens the KV pool holds for all requests together; default: from the context and the free memory"),
    ] = None
    kv_type: Annotated[KvType, Meta(description="type of the KV cache's numbers")] = "f16"
    gpu_layers: Annotated[int, Meta(ge=-1, description="layers to put on the GPU; -1: all")] = -1
    threads: Annotated[
        Annotated[int, Meta(ge=1)] | None, Meta(description="CPU threads; default: the number of physical cores")
    ] = None
    parallel: Annotated[int, Meta(ge=1, le=192, description="requests computed at once")] = 64
    queue: Annotated[int, Meta(ge=0, description="requests that may wait; one more is answered 503")] = 256
    batch: Annotated[int, Meta(ge=32, le=8192, description="most tokens in one step")] = 2048
    step_ms: Annotated[
        int, Meta(ge=1, description="longest step, in ms, while somebody is reading: prompt chunks are cut to fit")
    ] = 200
    cache_tokens: Annotated[
        Annotated[int, Meta(ge=0)] | None,
        Meta(description="tokens of finished requests kept in the KV pool; default: as many as hardly slow a step"),
    ] = None
    cache_ram_mib: Annotated[
        int, Meta(ge=0, description="host RAM, in MiB, for prefixes moved out of the KV pool; 0: none")
    ] = 512


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """How the HTTP server listens and answers."""

    host: Annotated[str, Meta(description="address to listen on")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="port to listen on; 0: any free one")] = 8000
    model: Annotated[
        str | None,
        Meta(
            description="model to serve: an id of the registry, hf:owner/repo:Q4_K_M, or the path of a .gguf file; default: "
            "the best recommended one that fits"
        ),
    ] = None
    registry: Annotated[
        str | None, Meta(description="files like models.yaml, comma-separated, that add models or override known ones")
    ] = None
    on_demand: Annotated[
        Literal["swap", "keep", "refuse"],
        Meta(
            description="when a request names a model that is not loaded: swap it for the one before, keep several while "
            "memory allows, or refuse"
        ),
    ] = "swap"
    keep_alive: Annotated[
        int, Meta(ge=-1, description="seconds after which a model that nobody asks is unloaded; -1: never")
    ] = -1
    strict_models: Annotated[
        bool, Meta(description="answer 404 for a model name the registry does not know, in every dialect")
    ] = False
    log_level: Annotated[LogLevel, Meta(description="least severe message to log")] = "info"
    log_format: Annotated[Literal["text", "json"], Meta(description="shape of a log line")] = "text"
    access_log: Annotated[bool, Meta(description="log a line for each request")] = True
    grace: Annotated[float, Meta(ge=0, description="seconds that running requests get to finish at shutdown")] = 10.0
    max_body_mib: Annotated[int, Meta(ge=1, description="largest request body, in MiB; a larger one is answered 413")] = 8
    completion_tokens: Annotated[
        int, Meta(ge=1, description="longest answer of /generate and /v1/completions when the request sets no limit")
    ] = 512
    api_key: Annotated[str | None, Meta(description="a key that clients must send, besides those of `locallab keys`")] = None
    auth: Annotated[
        bool, Meta(description="ask for a key: if there are any, and always beyond this machine (one is made then)")
    ] = True
    rate_limit: Annotated[bool, Meta(description="limit the requests of a key or an address")] = True
    native_rate: Annotated[str, Meta(description="limit of the native routes")] = "60/minute; 10/second"
    free_rate: Annotated[str, Meta(description="limit of /api/v1 for the tier free, and without a key")] = "100/minute"
    pro_rate: Annotated[str, Meta(description="limit of /api/v1 for the tier pro")] = "1000/minute"
    dialect_rate: Annotated[str | None, Meta(description="limit of the other dialects, such as /v1; default: none")] = None
    redis_url: Annotated[
        str | None, Meta(description="Redis that counts for several servers, redis://host:port/0; default: memory")
    ] = None
    trusted_proxies: Annotated[
        str, Meta(description="addresses or networks, comma-separated, whose X-Forwarded-For is believed")
    ] = ""
    allowed_hosts: Annotated[
        str | None,
        Meta(description="host names, comma-separated, that requests may name; default: this machine's, any with a key"),
    ] = None
    cors_origins: Annotated[
        str | None,
        Meta(description="web origins, comma-separated, that may call; * is every one; default: this machine's, * with a key"),
    ] = None
    templates: Annotated[
        str | None, Meta(description="file of assistant templates that override the shipped ones; see the README")
    ] = None
    tunnel: Annotated[
        bool, Meta(description="give the server a public address too, through ngrok; a key is asked for then")
    ] = False
    ngrok_token: Annotated[
        str | None,
        Meta(
            description="authtoken of the ngrok account that --tunnel uses; NGROK_AUTHTOKEN counts too", extra={"secret": True}
        ),
    ] = None
    tunnel_domain: Annotated[
        str | None, Meta(description="reserved domain of the ngrok account for --tunnel; default: as ngrok gives out")
    ] = None


def fields(cls: type) -> Iterator[tuple[str, Any, Any]]:
    """Yields (name, annotated type, default) of each setting of `cls`, in order."""
    hints = typing.get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        yield field.name, hints[field.name], field.default


def describe(annotated: Any) -> str:
    """The description that an annotated type carries."""
    return next((m.description or "" for m in typing.get_args(annotated)[1:] if isinstance(m, Meta)), "")


def is_secret(annotated: Any) -> bool:
    """Whether the setting is no flag, because every user of the machine can read the arguments of a process."""
    return any((m.extra or {}).get("secret", False) for m in typing.get_args(annotated)[1:] if isinstance(m, Meta))


def environment(cls: type, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The settings of `cls` that the environment gives as LOCALLAB_<NAME>; an empty value counts as not given."""
    found = {name: environ.get(f"LOCALLAB_{name.upper()}", "") for name, _, _ in fields(cls)}
    return {name: value for name, value in found.items() if value}


def resolve(cls: type[Settings], *layers: tuple[str, Mapping[str, Any]]) -> Settings:
    """Merges `layers`, each an origin and its values, later wins; None counts as not given.

    Raises ConfigError that names the origin and the key for an unknown key or a value of the wrong type or range.
    """
    return cls(**given(cls, *layers))


def given(cls: type, *layers: tuple[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What `layers` together say about `cls`, without its defaults. As `resolve` otherwise."""
    known = {name: annotated for name, annotated, _ in fields(cls)}
    merged: dict[str, Any] = {}
    for origin, values in layers:
        for name, value in values.items():
            if name not in known:
                raise ConfigError(f"{origin}: unknown setting {name!r}; known: {', '.join(known)}")
            if value is not None:
                merged[name] = _convert(origin, name, value, known[name])
    return merged


def _convert(origin: str, name: str, value: Any, annotated: Any) -> Any:
    try:
        return msgspec.convert(value, annotated, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{origin}: {name}: {error}, got {value!r}") from None


def home() -> Path:
    """Where weights and state lie: LOCALLAB_HOME, else the platform's data directory."""
    given = os.environ.get("LOCALLAB_HOME")
    return Path(given).expanduser() if given else Path(platformdirs.user_data_dir("locallab", appauthor=False))


def config_home() -> Path:
    """Where the user's own configuration lies: LOCALLAB_CONFIG, else the platform's configuration directory."""
    given = os.environ.get("LOCALLAB_CONFIG")
    return Path(given).expanduser() if given else Path(platformdirs.user_config_dir("locallab", appauthor=False))
