"""`locallab doctor --cache`: the report on what two request bodies share."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from locallab.cli.llama_library import loading_llama
from locallab.cli.settings_options import layers
from locallab.cli.tables import facts
from locallab.errors import ConfigError, RequestError, UnknownModel
from locallab.settings import EngineSettings, ServerSettings

if TYPE_CHECKING:
    from locallab.cli.doctor.cache import Comparison, VocabularyModel
    from locallab.models import ModelSpec, Registry

BODY = "expected the JSON object that is sent to a chat or completion route"


def report(files: tuple[str, str], path: str | None, server: ServerSettings, as_json: bool) -> None:
    """Print what the prompts of two request bodies share, where and why they part, and advice.

    `path` is the route they are sent to; None: the one that their fields fit. Raises ConfigError, ModelError.
    """
    from locallab.models import Registry, Store

    first, second = bodies = (_body(files[0]), _body(files[1]))
    registry = Registry.discover(server.registry)
    named = (_named(registry, first), _named(registry, second))
    with loading_llama():
        from locallab.cli.doctor.cache import PATHS, VocabularyModel, compare, path_of
        from locallab.inprocess.launch import choose
    if path is not None and path not in PATHS:
        raise ConfigError(f"--path: cannot compare bodies of {path!r}; expected one of {', '.join(PATHS)}")
    spec = named[0] if named[0] and not server.model else choose(registry, server.model, layers(EngineSettings, {}))
    file = Store().path(spec)
    if file is None:
        raise ConfigError(f"{spec.id} is not on disk: `locallab pull {spec.id}` fetches it, --model names another")
    path = path or path_of(first, second)
    with VocabularyModel.opened(file) as model:
        paths = (_path(model, path, files[0], first), _path(model, path, files[1], second))
        comparison = compare(model, paths, bodies)
    if None not in named and named[0] != named[1]:
        comparison = dataclasses.replace(comparison, kind="model", field="model")
    if as_json:
        click.echo(json.dumps(_as_dict(comparison, spec, files, paths)))
    else:
        facts(_lines(comparison, spec, files, paths))


def _body(file: str) -> Mapping[str, Any]:
    try:
        body = json.loads(Path(file).read_bytes())
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}; {BODY}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: is not valid JSON: {error}; {BODY}") from None
    if not isinstance(body, dict):
        raise ConfigError(f"{file}: {BODY}")
    return body


def _named(registry: Registry, body: Mapping[str, Any]) -> ModelSpec | None:
    """Return the model that a body names, None for a name that a server answers with the model it has loaded."""
    name = body.get("model", body.get("model_id"))
    with contextlib.suppress(UnknownModel):
        return registry.get(name) if isinstance(name, str) else None
    return None


def _path(model: VocabularyModel, path: str | None, file: str, body: Mapping[str, Any]) -> str:
    """Return the path of both bodies, or the one that takes this body. Raises ConfigError for a body that it refuses."""
    from locallab.cli.doctor.cache import path_of, refusal

    found = path or path_of(body)
    try:
        if found is None:
            raise refusal(body)
        model.text(found, body)
    except RequestError as error:
        raise ConfigError(f"{file}: {error}") from None
    return found


def _as_dict(comparison: Comparison, spec: ModelSpec, files: Sequence[str], paths: Sequence[str]) -> dict[str, Any]:
    described = zip(files, paths, comparison.tokens, comparison.after, strict=True)
    return {
        "model": spec.id,
        "requests": [{"file": file, "path": path, "tokens": n, "after": after} for file, path, n, after in described],
        "shared_tokens": comparison.shared,
        "before": comparison.before,
        "kind": comparison.kind,
        "field": comparison.field,
        "reason": comparison.explained.what,
        "advice": comparison.explained.advice,
        "harmless": comparison.harmless,
    }


def _lines(
    comparison: Comparison, spec: ModelSpec, files: Sequence[str], paths: Sequence[str]
) -> Iterator[tuple[str, str | None]]:
    explained, field = comparison.explained, comparison.field
    yield "model", spec.id
    for file, path, n_tokens in zip(files, paths, comparison.tokens, strict=True):
        yield file, f"{n_tokens:,} tokens, sent to {path}"
    yield "shared", f"the first {comparison.shared:,} tokens"
    yield "then", f"{field}: {explained.what}" if field else explained.what
    for file, after in zip(files, comparison.after, strict=True):
        yield file, f"{_quoted(comparison.before)} | {_quoted(after)}" if after else None
    yield "advice", explained.advice or "nothing to do"
    yield "harmless", ", ".join(comparison.harmless) or None


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
