"""`locallab ps`: the loaded models of a running server."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import click

from locallab.cli import api_client
from locallab.cli.replicas import REPLICA, replica
from locallab.cli.tables import table


@click.command("ps")
@api_client.options
@click.option("--json", "as_json", is_flag=True, help="print an object of url, version, uptime_seconds, models and failed")
def command(url: str | None, api_key: str | None, as_json: bool) -> None:
    """List the loaded models of a running server, with their memory, device, KV cache, requests and age; also what failed."""
    from locallab.units import duration

    with api_client.ApiClient(url, api_key) as server:
        info = server.get("/system/info")
    models = [
        {
            "id": model["name"],
            **{name: model[name] for name in ("type", "device", "context", "kv_tokens", "loaded_at")},
            **model["memory"],
            **{name: model.get(name) for name in ("memory_kind", "kv_layout", "prefix_reuse")},
            **{name: model["stats"][name] for name in ("running", "waiting", "completion_tokens")},
        }
        for model in info["models"]
    ]
    failed = info.get("failed", {})
    replicas = info.get("replicas")
    if as_json:
        kept = {name: info[name] for name in ("version", "uptime_seconds", "public_url")}
        if replicas is not None:
            kept["replicas"] = replicas
        click.echo(json.dumps({"url": server.url, **kept, "models": models, "failed": failed}))
        return
    click.echo(f"LocalLab {info['version']} at {server.url}, up for {duration(info['uptime_seconds'])}", err=True)
    if replicas is not None:
        click.echo("It is the front of a cluster:", err=True)
        table(REPLICA, map(replica, replicas))
        return
    table(("model", "memory", "device", "context", "kv cache", "running", "waiting", "loaded"), map(_row, models))
    for name, reason in failed.items():
        click.echo(f"{name} has failed: {reason}", err=True)


def _row(model: Mapping[str, Any]) -> tuple[str, ...]:
    from locallab.units import decimal_bytes, duration

    memory = {"RAM": model["ram_bytes"], "VRAM": model["vram_bytes"]}
    return (
        model["id"],
        " + ".join(f"{decimal_bytes(size)} {kind}" for kind, size in memory.items() if size) or "-",
        model["device"],
        f"{model['context']:,}",
        ", ".join(filter(None, (model["memory_kind"], model["kv_layout"]))) or "-",
        str(model["running"]),
        str(model["waiting"]),
        f"{duration(max(0, time.time() - model['loaded_at']))} ago",
    )
