"""`locallab show`: the registry entry and the file metadata of a model."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from locallab.cli.settings_options import model_names, server_settings
from locallab.cli.tables import facts
from locallab.units import count, decimal_bytes

if TYPE_CHECKING:
    from locallab.models import ModelSpec, Store
    from locallab.models.gguf import Header

FIM_KEYS = ("fim_mid_token_id", "fim_middle_token_id", "middle_token_id")


@click.command("show")
@click.argument("model", shell_complete=model_names)
@click.option("--json", "as_json", is_flag=True, help="print an object, with the complete chat template")
def command(model: str, as_json: bool) -> None:
    """Show MODEL: its registry entry and, once it is on disk, the metadata of its file."""
    from locallab.models import Registry, Store

    entry = describe(Registry.discover(server_settings().registry).resolve(model), Store())
    if as_json:
        click.echo(json.dumps(entry))
    else:
        facts(_lines(entry))


def describe(spec: ModelSpec, store: Store) -> dict[str, Any]:
    """Return the entry and the metadata in values of JSON; `file` is None while the model is not on disk."""
    import msgspec

    from locallab.models import gguf

    path = store.path(spec)
    return {
        "id": spec.id,
        "description": spec.description,
        "aliases": list(spec.aliases),
        "license": spec.license,
        "modalities": list(spec.takes),
        "recommended": bool(spec.recommended),
        "recommended_for": [] if isinstance(spec.recommended, bool) else list(spec.recommended),
        "source": {part: msgspec.to_builtins(source, enc_hook=str) for part, source in spec.parts.items()},
        "size": store.size(spec) or spec.size,
        "active": spec.active,
        "memory": spec.memory,
        "context": spec.context,
        "settings": dict(spec.settings),
        "base": spec.base,
        "template": None if spec.template is None else str(spec.template),
        "system": spec.system,
        "on_disk": store.has(spec),
        "file": None if path is None else {"path": str(path), **header_facts(gguf.read(path), "mmproj" in spec.parts)},
    }


def header_facts(header: Header, sees: bool = False) -> dict[str, Any]:
    """Return the metadata of a model's file; `sees`: the model has a projector for images."""
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
        "named_chat_templates": {name: str(header.metadata[key]) for name, key in _named_templates(header).items()},
    }


def _named_templates(header: Header) -> dict[str, str]:
    """Return the keys of the file's further chat templates by their names."""
    prefix = "tokenizer.chat_template."
    return {key.removeprefix(prefix): key for key in header.metadata if key.startswith(prefix)}


def capabilities(header: Header, sees: bool) -> list[str]:
    """Return what the model was trained for, as far as its file tells."""
    from locallab.chat.reasoning import tags_of

    template = str(header.metadata.get("tokenizer.chat_template", ""))
    found = {
        "completion": True,
        "chat": bool(template),
        "tools": "tools" in template or "tool_use" in _named_templates(header),
        "reasoning": bool(template) and tags_of(template) is not None,
        "infill": any(f"tokenizer.ggml.{key}" in header.metadata for key in FIM_KEYS),
        "vision": sees,
        "embedding": f"{header.architecture}.pooling_type" in header.metadata,
    }
    return [name for name, has in found.items() if has]


def _words(value: object) -> str:
    if isinstance(value, Mapping):
        return " ".join(_words(each) for name, each in value.items() if name != "sha256")
    return ", ".join(map(_words, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)


def _lines(entry: Mapping[str, Any]) -> Iterable[tuple[str, str | None]]:
    yield "id", entry["id"]
    yield "about", entry["description"]
    yield "aliases", ", ".join(entry["aliases"]) or None
    yield "license", entry["license"]
    yield "takes", ", ".join(entry["modalities"]) if entry["modalities"] != ["text"] else None
    yield "best for", ", ".join(entry["recommended_for"]) or None
    for part, source in entry["source"].items():
        yield "source" if part == "model" else part, _words(source)
    yield "size", decimal_bytes(entry["size"]) if entry["size"] else None
    yield "active", f"{decimal_bytes(entry['active'])} for each token" if entry["active"] else None
    yield "memory", f"{decimal_bytes(entry['memory'])} or more" if entry["memory"] else None
    yield "context", f"{entry['context']:,} tokens per request" if entry["context"] else None
    yield "settings", ", ".join(f"{name}={value}" for name, value in entry["settings"].items()) or None
    if entry["file"] is None:
        yield "on disk", f"no: `locallab pull {entry['id']}` fetches it"
        return
    file = entry["file"]
    total = sum(file["tensor_bytes"].values()) or 1
    shares = [f"{kind} {size / total:.0%}" for kind, size in file["tensor_bytes"].items() if size / total >= 0.005]
    trained, template = file["trained_context"], file["chat_template"]
    yield "file", file["path"]
    yield "name", file["name"]
    yield "architecture", f"{file['architecture']}, {file['layers']} layers, vocabulary of {file['vocabulary']:,} tokens"
    yield "parameters", count(file["parameters"])
    yield "quantization", f"{file['quantization']} (by bytes: {', '.join(shares)})"
    yield "trained context", f"{trained:,} tokens" if trained else None
    yield "chat template", f"{len(template):,} characters (--json prints it)" if template else "none"
    yield "others", ", ".join(file["named_chat_templates"]) or None
    yield "capabilities", ", ".join(file["capabilities"])
