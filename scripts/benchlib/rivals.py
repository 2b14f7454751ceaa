"""The C++ server's settings, so that each row compares with the best it can do: what was tried, and what came out."""

from __future__ import annotations

TRIED = {
    "default": "",
    "pool": "--kv-unified",
    "no-ram-cache": "--cache-ram 0",
    "ub-128": "-ub 128",
    "ub-1024": "-b 2048 -ub 1024",
    "two-slots": "-np 2",
    "four-slots": "-np 4",
    "ngram-simple": "--spec-type ngram-simple",
    "ngram-simple-8": "--spec-type ngram-simple --spec-ngram-simple-size-n 8 --spec-ngram-simple-size-m 32",
    "ngram-simple-4": "--spec-type ngram-simple --spec-ngram-simple-size-n 4 --spec-ngram-simple-size-m 16",
    "ngram-map-k": "--spec-type ngram-map-k --spec-ngram-map-k-size-n 4 --spec-ngram-map-k-size-m 16",
    "ngram-mod": "--spec-type ngram-mod --spec-ngram-mod-n-match 8 --spec-ngram-mod-n-min 4 --spec-ngram-mod-n-max 16",
    "ngram-cache": "--spec-type ngram-cache --spec-draft-n-max 16",
}
"""Flags that --tune measures beside each other, by the names that they have in the table; the last of a flag holds."""

BEST: dict[str, str] = {
    "edit": TRIED["ngram-simple"],
    "json": TRIED["ngram-map-k"],
    "prompt": TRIED["ub-1024"],
    "shared:8": TRIED["two-slots"],
    "shared:32": TRIED["four-slots"],
    "short:32": TRIED["four-slots"],
    "turns:1": TRIED["ngram-cache"],
    "turns:8": TRIED["ub-1024"],
}
"""The best flags by workload, or by workload and clients where those differ ("edit:4"); no entry: the default ones."""


def best(workload: str, clients: int) -> str:
    """The flags for a row."""
    return BEST.get(f"{workload}:{clients}", BEST.get(workload, ""))
