"""Human-readable quantities: bytes, durations, counts."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Format seconds: 45 s, 3 min, 2 h 5 min."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def count(number: int) -> str:
    """Format a number: 7.6 billion, 135 million."""
    for scale, word in ((10**9, "billion"), (10**6, "million"), (10**3, "thousand")):
        if number >= scale:
            return f"{number / scale:.3g} {word}"
    return str(number)


def binary_bytes(count: int) -> str:
    """Format bytes in binary units: 812 MiB, 4.4 GiB."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def decimal_bytes(size: int) -> str:
    """Format bytes in decimal units: 4.7 GB, 98 MB, 12 kB."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size} bytes"


def compact_bytes(size: int | None) -> str:
    """Format bytes in decimal units without a blank, such as 98MB; None, the size of an unfetched model, is "unknown"."""
    if size is None:
        return "unknown"
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if size >= scale:
            return f"{size / scale:.3g}{unit}"
    return f"{size}B"


def compact_count(count: int) -> str:
    """Format a number of parameters as in model names: 135M, 8.0B; empty for 0."""
    if count >= 10**9:
        return f"{count / 10**9:.1f}B"
    if count >= 10**6:
        return f"{count / 10**6:.0f}M"
    return str(count) if count else ""
