"""Settings as frozen dataclasses. Flags, environment variables (LOCALLAB_*) and the reference table derive from them.

Precedence, lowest first: the default here, the model's entry in models.yaml, the environment, the flags.
"""

from __future__ import annotations

import dataclasses
import os
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import platformdirs
from msgspec import Meta

from locallab.errors import ConfigError
from locallab.listener_settings import ListenerSettings
from locallab.listener_settings import MediaSettings as MediaSettings
from locallab.placement_settings import MOST as MOST
from locallab.placement_settings import KvLayout as KvLayout
from locallab.placement_settings import KvType as KvType
from locallab.placement_settings import PlacementSettings

Layout = Literal["streams", "unified"]
OnDevice = Literal["auto", "on", "off"]
Provider = Literal["ngrok", "cloudflared"]
LogLevel = Literal["debug", "info", "warning", "error"]
Settings = TypeVar("Settings")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LoadSettings(PlacementSettings):
    """Loading and scheduling of one model."""

    parallel: Annotated[int, Meta(ge=1, le=192, description="maximum requests computed at once")] = 64
    chat_template: Annotated[
        Annotated[str, Meta(min_length=1)] | None,
        Meta(
            description="chat template to use instead of the model's own: a Jinja file, or a name: chatml, llama3, gemma, "
            "mistral, phi3, zephyr, vicuna, alpaca"
        ),
    ] = None
    queue: Annotated[
        int, Meta(ge=0, le=MOST, description="maximum queued requests; beyond, one of the client with most gets 503")
    ] = 256
    batch: Annotated[int, Meta(ge=32, le=8192, description="maximum tokens per step")] = 2048
    ubatch: Annotated[
        Annotated[int, Meta(ge=32, le=8192)] | None,
        Meta(
            description="maximum tokens that llama.cpp computes in one go; default: 512, on a GPU up to a whole step where "
            "the memory for its buffers is there"
        ),
    ] = None
    device_sampling: Annotated[
        OnDevice,
        Meta(
            description="draw tokens where the logits are, as part of a step, for requests without seed, grammar, log "
            "probabilities and penalties; auto: on a GPU, unless the likeliest token is all that is wanted"
        ),
    ] = "auto"
    step_ms: Annotated[
        int,
        Meta(
            ge=1,
            le=600_000,
            description="target for the longest step, in ms, while answers stream; prompt chunks are cut to fit",
        ),
    ] = 200
    drafts: Annotated[
        bool,
        Meta(description="guess what an answer copies or repeats, and verify several tokens in a step where that is faster"),
    ] = True
    draft_model: Annotated[
        Annotated[str, Meta(min_length=1)] | None,
        Meta(
            description="small model of the same vocabulary that guesses what this one says next: a registry id, "
            "hf:owner/repo:Q4_K_M, or the path of a .gguf file; none: do without; default: the draft of the model's entry"
        ),
    ] = None
    mmproj: Annotated[
        Annotated[str, Meta(min_length=1)] | None,
        Meta(
            description="path of the projector (.gguf) with which the model takes images or audio; none: do without; default: "
            "the mmproj of the model's entry, or the one beside its file"
        ),
    ] = None
    media_cache_mib: Annotated[
        int, Meta(ge=0, le=MOST, description="host RAM, in MiB, for the embeddings of images and audio, which requests share")
    ] = 256
    cache_tokens: Annotated[
        Annotated[int, Meta(ge=0, le=MOST)] | None,
        Meta(description="finished tokens kept in the KV cache; default: in one pool bounded by their measured cost"),
    ] = None
    cache_ram_mib: Annotated[
        int, Meta(ge=0, le=MOST, description="host RAM, in MiB, for the state of prefixes, which requests share; 0: none")
    ] = 512
    cache_disk: Annotated[
        Annotated[str, Meta(min_length=1)] | None,
        Meta(description="directory for prefixes that outlive the process, or auto: one in the user's cache; default: off"),
    ] = None
    cache_disk_gib: Annotated[
        float, Meta(gt=0, le=1_000_000, description="maximum size of the directory of --cache-disk, in GiB")
    ] = 10.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings(LoadSettings):
    """Loading and scheduling of one model, and the sampling of requests that leave it open. There None is what the model's file
    says or, where it is silent, the default of SamplingParams, whose names these are."""

    temperature: Annotated[
        Annotated[float, Meta(ge=0, le=100)] | None,
        Meta(description="temperature of requests without one; 0 is greedy; default, as of the next ones: the model's own"),
    ] = None
    top_k: Annotated[Annotated[int, Meta(ge=0)] | None, Meta(description="sample from the k likeliest tokens; 0: all")] = None
    top_p: Annotated[
        Annotated[float, Meta(gt=0, le=1)] | None,
        Meta(description="sample from the likeliest tokens whose probabilities add up to p; 1: all"),
    ] = None
    min_p: Annotated[
        Annotated[float, Meta(ge=0, le=1)] | None,
        Meta(description="drop tokens below this fraction of the top token's probability; 0: none"),
    ] = None
    top_n_sigma: Annotated[
        Annotated[float, Meta(ge=-1000, le=1000)] | None,
        Meta(description="drop tokens this many standard deviations below the highest logit; 0: none"),
    ] = None
    repeat_penalty: Annotated[
        Annotated[float, Meta(gt=0, le=100)] | None, Meta(description="penalty on tokens that have occurred; 1: off")
    ] = None
    frequency_penalty: Annotated[
        Annotated[float, Meta(ge=-2, le=2)] | None,
        Meta(description="penalty on a token for each time it has occurred; 0: off"),
    ] = None
    presence_penalty: Annotated[
        Annotated[float, Meta(ge=-2, le=2)] | None, Meta(description="penalty on a token once it has occurred; 0: off")
    ] = None
    penalty_window: Annotated[
        Annotated[int, Meta(ge=-1)] | None, Meta(description="number of last tokens the penalties look at; -1: all")
    ] = None
    xtc_probability: Annotated[
        Annotated[float, Meta(ge=0, le=1)] | None,
        Meta(description="chance that of all tokens above --xtc-threshold only the least likely is kept; 0: off"),
    ] = None
    xtc_threshold: Annotated[
        Annotated[float, Meta(ge=0, le=1)] | None, Meta(description="probability from which XTC drops tokens; above 0.5: off")
    ] = None
    dry_multiplier: Annotated[
        Annotated[float, Meta(ge=0, le=100)] | None,
        Meta(description="penalty on tokens that continue a repeated sequence (DRY); 0: off"),
    ] = None
    mirostat: Annotated[
        Annotated[int, Meta(ge=0, le=2)] | None,
        Meta(description="1 or 2: sample at a fixed surprise, in place of all other samplers; 0: off"),
    ] = None
    mirostat_tau: Annotated[
        Annotated[float, Meta(ge=0, le=100)] | None, Meta(description="mirostat's target surprise, in bits")
    ] = None
    mirostat_eta: Annotated[Annotated[float, Meta(ge=0, le=1)] | None, Meta(description="mirostat's learning rate")] = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings(ListenerSettings):
    """The HTTP server: its address, models, limits and access."""

    model: Annotated[
        str | None,
        Meta(
            description="model to serve: a registry id, hf:owner/repo:Q4_K_M, or the path of a .gguf file; default: the best "
            "recommended one that fits"
        ),
    ] = None
    lora: Annotated[
        str | None,
        Meta(
            description="comma-separated LoRA adapters of the model, each NAME=FILE or NAME=FILE:SCALE; requests choose them "
            "by the name MODEL:NAME or the field lora; the flag may be repeated",
            extra={"each": "NAME=FILE[:SCALE]"},
        ),
    ] = None
    registry: Annotated[
        str | None, Meta(description="comma-separated files like models.yaml that add models or override known ones")
    ] = None
    on_demand: Annotated[
        Literal["swap", "keep", "refuse"],
        Meta(
            description="when a request names a model that is not loaded: swap the loaded model for it, keep several while "
            "memory allows, or refuse"
        ),
    ] = "swap"
    keep_alive: Annotated[int, Meta(ge=-1, description="unload a model idle for this many seconds; -1: never")] = -1
    strict_models: Annotated[bool, Meta(description="answer 404 to unknown model names, in every dialect")] = False
    log_level: Annotated[LogLevel, Meta(description="minimum severity of log messages")] = "info"
    log_format: Annotated[Literal["text", "json"], Meta(description="format of log lines")] = "text"
    access_log: Annotated[bool, Meta(description="log a line for each request")] = True
    otel: Annotated[
        bool,
        Meta(description="send a trace of each request by OpenTelemetry to OTEL_EXPORTER_OTLP_ENDPOINT; needs the extra otel"),
    ] = False
    page: Annotated[bool, Meta(description="answer a browser at / with a page: chat, models, what the server is doing")] = True
    grace: Annotated[float, Meta(ge=0, description="seconds running requests get to finish at shutdown")] = 10.0
    openmp: Annotated[
        str,
        Meta(
            description="whose OpenMP threads compute on the CPU: gnu; llvm, where it is installed; or the path of a runtime's "
            "library"
        ),
    ] = "gnu"
    supervise: Annotated[bool, Meta(description="start the server again when it dies")] = True
    max_deaths: Annotated[int, Meta(ge=1, description="deaths within a minute after which it is not started again")] = 5
    max_body_mib: Annotated[int, Meta(ge=1, description="maximum request body, in MiB; larger ones get 413")] = 8
    connections_per_address: Annotated[
        int, Meta(ge=1, description="maximum connections from one address; a further one takes the place of an idle one")
    ] = 512
    completion_tokens: Annotated[
        int, Meta(ge=1, description="maximum answer of /generate and /v1/completions when the request sets no limit, in tokens")
    ] = 512
    api_key: Annotated[str | None, Meta(description="API key to require, besides those of `locallab keys`")] = None
    api_key_file: Annotated[
        str | None,
        Meta(description="file that holds the API key instead of --api-key, which process listings show; read at start"),
    ] = None
    usage_days: Annotated[
        int, Meta(ge=0, le=36_500, description="days for which usage per key and model is kept; 0: it is not recorded")
    ] = 400
    auth: Annotated[
        bool, Meta(description="require an API key: if one exists, and always beyond this machine (one is then created)")
    ] = True
    rate_limit: Annotated[bool, Meta(description="limit requests per key, or per IP address without one")] = True
    native_rate: Annotated[str, Meta(description="rate limit of the native routes")] = "60/minute; 10/second"
    free_rate: Annotated[str, Meta(description="rate limit of /api/v1 for the free tier, and without a key")] = "100/minute"
    pro_rate: Annotated[str, Meta(description="rate limit of /api/v1 for the pro tier")] = "1000/minute"
    dialect_rate: Annotated[str | None, Meta(description="rate limit of the other dialects, such as /v1; default: none")] = None
    redis_url: Annotated[
        str | None,
        Meta(
            description="Redis through which servers share keys, rate limits, usage and stored responses, redis://host:port/0; "
            "default: none"
        ),
    ] = None
    trusted_proxies: Annotated[
        str, Meta(description="comma-separated addresses or networks of proxies whose X-Forwarded-For is trusted")
    ] = ""
    root_path: Annotated[
        str,
        Meta(description="path below which a proxy serves the server, such as /llm; it answers with and without it"),
    ] = ""
    allowed_hosts: Annotated[
        str | None,
        Meta(description="comma-separated host names that requests may use; default: local ones, any with a key"),
    ] = None
    cors_origins: Annotated[
        str | None,
        Meta(description="comma-separated web origins that may call; *: any; default: this machine's, * with a key"),
    ] = None
    isolate_cache: Annotated[
        bool | None,
        Meta(
            description="keep the prefix cache of each key, or address without one, apart, so that nobody can tell what others "
            "have asked; default: with more than one key"
        ),
    ] = None
    shared_prompts: Annotated[
        str | None,
        Meta(description="comma-separated text files, each with a system prompt that all may share in the prefix cache"),
    ] = None
    templates: Annotated[str | None, Meta(description="YAML file of assistant templates that override the shipped ones")] = None
    tunnel: Annotated[
        bool | Provider,
        Meta(description="open a public tunnel, by ngrok unless cloudflared is named; requires an API key"),
    ] = False
    ngrok_token: Annotated[
        str | None,
        Meta(description="ngrok authtoken for --tunnel; NGROK_AUTHTOKEN works too", extra={"secret": True}),
    ] = None
    cloudflared_token: Annotated[
        str | None,
        Meta(
            description="token of a Cloudflare tunnel for --tunnel cloudflared, with its name in --tunnel-domain; default: a "
            "quick tunnel, without an account",
            extra={"secret": True},
        ),
    ] = None
    cloudflared_path: Annotated[
        str | None, Meta(description="the program cloudflared for --tunnel cloudflared; default: the one on the PATH")
    ] = None
    tunnel_domain: Annotated[
        str | None,
        Meta(description="reserved ngrok domain, or public host name of a Cloudflare tunnel, for --tunnel; default: assigned"),
    ] = None


def fields(cls: type) -> Iterator[tuple[str, Any, Any]]:
    """Yield (name, annotated type, default) of each setting of `cls`, in order; bounds of media come last."""
    hints = typing.get_type_hints(cls, include_extras=True)
    for field in sorted(dataclasses.fields(cls), key=lambda field: field.name in MediaSettings.__annotations__):
        yield field.name, hints[field.name], field.default


def variable(name: str) -> str:
    """Return the environment variable of a setting."""
    return f"LOCALLAB_{name.upper()}"


def describe(annotated: Any) -> str:
    """Return the description in an annotated type, empty if it has none."""
    return next((m.description or "" for m in typing.get_args(annotated)[1:] if isinstance(m, Meta)), "")


def each(annotated: Any) -> str | None:
    """Return the form of one of the comma-separated values of a setting whose flag may be given several times, such as
    "NAME=FILE"; None for other settings."""
    extras = ((m.extra or {}).get("each") for m in typing.get_args(annotated)[1:] if isinstance(m, Meta))
    return next(filter(None, extras), None)


def words(annotated: Any) -> tuple[str, ...]:
    """Return the words that a switch takes besides on and off, the one that on means first; none for other settings."""
    options = typing.get_args(typing.get_args(annotated)[0])
    return next((typing.get_args(each) for each in options if bool in options and each is not bool), ())


def is_secret(annotated: Any) -> bool:
    """Return whether the setting has no flag, because every user of the machine can read a process's arguments."""
    return any((m.extra or {}).get("secret", False) for m in typing.get_args(annotated)[1:] if isinstance(m, Meta))


def environment(cls: type, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the settings of `cls` in the environment. An empty variable counts as unset."""
    found = {name: environ.get(variable(name), "") for name, _, _ in fields(cls)}
    return {name: value for name, value in found.items() if value}


def resolve(cls: type[Settings], *layers: tuple[str, Mapping[str, Any]]) -> Settings:
    """Merge `layers`, pairs of an origin and its values: the last one wins, and None counts as unset.

    Raises ConfigError with the origin and the key for an unknown key or a value of the wrong type or range.
    """
    return cls(**configured(cls, *layers))


def configured(cls: type, *layers: tuple[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Merge `layers` like `resolve`, without the defaults of `cls`."""
    known = {name: annotated for name, annotated, _ in fields(cls)}
    merged: dict[str, Any] = {}
    for origin, values in layers:
        for name, value in values.items():
            if name not in known:
                raise ConfigError(f"{origin}: unknown setting {name!r}; known: {', '.join(known)}")
            if value is None:
                continue
            try:
                merged[name] = msgspec.convert(value, known[name], strict=False)
            except msgspec.ValidationError as error:
                form = each(known[name])
                hint = f"; its form is {form}" if form else ""
                raise ConfigError(f"{origin}: {name}: {error}, got {value!r}{hint}") from None
    return merged


def home() -> Path:
    """Return the folder of weights and state: LOCALLAB_HOME, or the platform's data directory."""
    return _folder("LOCALLAB_HOME", platformdirs.user_data_dir)


def cache_directory(cache_disk: str) -> Path:
    """Return the directory that the setting names; "auto" is one in the platform's cache directory."""
    if cache_disk == "auto":
        return _usual("--cache-disk", platformdirs.user_cache_dir) / "prefixes"
    return Path(os.path.expanduser(cache_disk))


def config_home() -> Path:
    """Return the folder of the user's configuration: LOCALLAB_CONFIG, or the platform's configuration directory."""
    return _folder("LOCALLAB_CONFIG", platformdirs.user_config_dir)


def _folder(name: str, usual: Callable[..., str]) -> Path:
    """Return the folder that a variable names, else the platform's. Raises ConfigError."""
    named = os.environ.get(name)
    path = Path(os.path.expanduser(named)) if named else _usual(name, usual)
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{name}: {path} is not a folder")
    return path


def _usual(setting: str, usual: Callable[..., str]) -> Path:
    """Return the platform's folder. Raises ConfigError where the user has no home."""
    try:
        path = Path(usual("locallab", appauthor=False))
    except RuntimeError:
        path = Path("~")
    if not path.is_absolute():
        raise ConfigError(f"{setting}: there is no home directory to choose a folder in; set HOME, or {setting} to a folder")
    return path
