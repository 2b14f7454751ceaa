"""The report of scripts/gpu-check: one table of what decides, and below it what each stage has printed. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Results = Mapping[str, Any]


def report(results: Results) -> str:
    """Return the report as Markdown, of whatever is there so far."""
    rows = [("what", "found"), ("---", "---"), *_machine(results), *_chosen(results), *_steps(results), *_ratios(results)]
    rows += [*_tests(results), *_stages(results)]
    table = "\n".join(f"| {what} | {_cell(found)} |" for what, found in rows)
    parts = [table]
    if follows := results.get("layouts", {}).get("follows"):
        parts.append("\n".join(["KV layouts:", "", *(f"- {line}" for line in follows)]))
    parts += results.get("bench", {}).get("tables", {}).values()
    return "\n\n".join(parts)


def _machine(results: Results) -> Iterator[tuple[str, str]]:
    machine = results.get("machine", {})
    for name in ("card", "driver", "CPU", "llama.cpp", "Python", "model", "command"):
        if name in machine:
            yield name, machine[name]


def _chosen(results: Results) -> Iterator[tuple[str, str]]:
    steps = results.get("steps", {})
    if "chosen" in steps:
        yield "chosen", ", ".join(f"{name} {value}" for name, value in steps["chosen"].items())
        yield "why", steps["why"]
        yield "load", f"{steps['load_s']:.1f} s"
    if memory := steps.get("memory"):
        before, after = memory["before"], memory["after"]
        gpu = f"; GPU {after['gpu_mib'] - before['gpu_mib']:,.0f} MiB" if after["gpu_mib"] else ""
        yield "memory", f"RAM {after['ram_mib']:,.0f} MiB at most{gpu}"


def _steps(results: Results) -> Iterator[tuple[str, str]]:
    for row in results.get("steps", {}).get("rows", []):
        what = f"step, {row['requests']} requests, {row['sampling']}, --device-sampling {row['device_sampling']}"
        if "note" in row:
            yield what, row["note"]
            continue
        parts = ", ".join(f"{name} {ms:.2f}" for name, ms in row["phases_ms"].items())
        speed = f"{row['tokens_per_s']:,.1f} tokens/s; prompts {row['prompts_ms']:,.0f} ms"
        yield what, f"{row['step_ms']:.2f} ms ({parts}); {speed}"


def _ratios(results: Results) -> Iterator[tuple[str, str]]:
    """Yield for each row of the benchmark the throughput of LocalLab as a ratio to the C++ server's, if it ran."""
    speeds: dict[tuple[str, int], dict[str, list[float]]] = {}
    for sample in results.get("bench", {}).get("samples", []):
        row = speeds.setdefault((sample["workload"], sample["clients"]), {})
        row.setdefault(sample["server"], []).append(sample["tokens_per_s"])
    for (workload, clients), row in speeds.items():
        medians = {server: sorted(values)[len(values) // 2] for server, values in row.items()}
        told = ", ".join(f"{server} {speed:,.1f} tokens/s" for server, speed in medians.items())
        ours, theirs = medians.get("locallab"), medians.get("llama-server")
        ratio = f"{ours / theirs:.2f} of the C++ server; " if ours and theirs else ""
        yield f"{workload}, {clients} clients", ratio + told


def _tests(results: Results) -> Iterator[tuple[str, str]]:
    if "tests" in results:
        yield "tests marked gpu", results["tests"]["summary"]


def _stages(results: Results) -> Iterator[tuple[str, str]]:
    for name, stage in results["stages"].items():
        yield f"stage {name}", f"{stage['seconds']:.0f} s{'; **' + stage['problem'] + '**' if stage['problem'] else ''}"


def _cell(text: str) -> str:
    return " ".join(str(text).replace("|", "\\|").split())
