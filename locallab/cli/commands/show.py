"""`locallab show`: everything known of one model: its entry in the registry, and what its file says."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import click

from locallab import settings
from locallab.cli.settings_options import layers, model_names
from locallab.cli.tables import facts
from locallab.settings import ServerSettings
from locallab.units import count

if TYPE_CHECKING:
    from locallab.models import ModelSpec, Source, Store
    from locallab.models.gguf import Header

FIM_KEYS = ("fim_mid_token_id", "fim_middle_token_id", "middle_token_id")


@click.command("show")
@click.argument("model", shell_complete=model_names)
@click.option("--json", "as_json", is_flag=True, help="print an object, with the whole chat template")
def command(model: str, as_json: bool) -> None:
    """Show what is known of MODEL.

    Its entry in the registry and, once it is on disk, what its file says.
    """
    from locallab.models import Registry, Store

    given = settings.resolve(ServerSettings, *layers(ServerSettings, {}))
    spec = Registry.discover(given.registry).resolve(model)
    entry = describe(spec, Store())
    if as_json:
        click.echo(json.dumps(entry))
    else:
        facts(_lines(entry))


def describe(spec: ModelSpec, store: Store) -> dict[str, Any]:
    """All of it as plain values; `file` is None while the model is not on disk."""
    from locallab.models import gguf

    path = store.path(spec)
    return {
        "id": spec.id,
        "description": spec.description,
        "aliases": list(spec.aliases),
        "recommended": spec.recommended,
        "source": {part: _source(source) for part, source in spec.parts.items()},
        "size": store.size(spec) or spec.size,
        "context": spec.context,
        "settings": dict(spec.settings),
        "on_disk": store.has(spec),
        "file": None if path is None else {"path": str(path), **header_facts(gguf.read(path), "mmproj" in spec.parts)},
    }


def header_facts(header: Header, sees: bool = False) -> dict[str, Any]:
    """What a model's file says; `sees`: it has a projector for pictures."""
    from locallab.models.quants import label

    types = Counter[str]()
    for tensor in header.tensors:
        types[tensor.type] += tensor.size
    name = header.metadata.get("general.name")
    template = header.metadata.get("tokenizer.chat_template")
    return {
        "name": None if name is None else str(name),
        "architecture": header.architecture,
        "parameters": sum(math.prod(tensor.shape) for tensor in header.tensors),
        "trained_context": header.number("context_length"),
        "layers": header.number("block_count"),
        "embedding_length": header.number("embedding_length"),
        "vocabulary": header.n_vocab,
        "quantization": label(header.path.name) or (types.most_common(1)[0][0] if types else None),
        "tensor_bytes": dict(types.most_common()),
        "capabilities": capabilities(header, sees),
        "chat_template": None if template is None else str(template),
    }


def capabilities(header: Header, sees: bool) -> list[str]:
    """What the model was made for, as far as its file tells: where there is no chat template, it completes text only."""
    from locallab.chat.reasoning import tags_of

    template = str(header.metadata.get("tokenizer.chat_template", ""))
    found = {
        "completion": True,
        "chat": bool(template),
        "tools": "tools" in template,
        "reasoning": bool(template) and tags_of(template) is not None,
        "infill": any(f"tokenizer.ggml.{key}" in header.metadata for key in FIM_KEYS),
        "vision": sees,
        "embedding": f"{header.architecture}.pooling_type" in header.metadata,
    }
    return [name for name, has in found.items() if has]


def _source(source: Source) -> dict[str, Any]:
    import msgspec

    known: dict[str, Any] = msgspec.to_builtins(source, enc_hook=str)
    return {name: value for name, value in known.items() if value is not None}


def _lines(entry: Mapping[str, Any]) -> Iterable[tuple[str, str | None]]:
    from locallab.units import decimal_bytes

    yield "id", entry["id"]
    yield "about", entry["description"]
    yield "aliases", ", ".join(entry["aliases"]) or None
    for part, source in entry["source"].items():
        yield "source" if part == "model" else part, " ".join(str(value) for name, value in source.items() if name != "sha256")
    yield "size", decimal_bytes(entry["size"]) if entry["size"] else None
    yield "context", f"{entry['context']:,} tokens a request" if entry["context"] else None
    yield "settings", ", ".join(f"{name}={value}" for name, value in entry["settings"].items()) or None
    if entry["file"] is None:
        yield "on disk", f"no: `locallab pull {entry['id']}` fetches it"
    else:
        yield from _file_lines(entry["file"])


def _file_lines(file: Mapping[str, Any]) -> Iterable[tuple[str, str | None]]:
    total = sum(file["tensor_bytes"].values()) or 1
    shares = [f"{kind} {size / total:.0%}" for kind, size in file["tensor_bytes"].items() if size / total >= 0.005]
    trained, template = file["trained_context"], file["chat_template"]
    yield "file", file["path"]
    yield "name", file["name"]
    yield "architecture", f"{file['architecture']}, {file['layers']} layers, {file['vocabulary']:,} tokens in its vocabulary"
    yield "parameters", count(file["parameters"])
    yield "quantization", f"{file['quantization']} (of its bytes: {', '.join(shares)})"
    yield "trained context", f"{trained:,} tokens" if trained else None
    yield "chat template", f"{len(template):,} characters (--json prints it)" if template else "none"
    yield "can do", ", ".join(file["capabilities"])
