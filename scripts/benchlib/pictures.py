"""Pictures to show: PNG files of coloured rectangles, the same for the same key."""

from __future__ import annotations

import base64
import random
import struct
import zlib

TILES = 8
"""Rectangles in a row, and rows of them."""


def data_url(side: int, key: str) -> str:
    """A picture of `side` by `side` pixels as a data: URL."""
    return "data:image/png;base64," + base64.b64encode(png(side, key)).decode()


def png(side: int, key: str) -> bytes:
    """The same as a PNG file."""
    chosen, tile = random.Random(key), -(-side // TILES)
    rows = []
    for _ in range(TILES):
        colours = [chosen.randbytes(3) for _ in range(TILES)]
        row = b"".join(colour * tile for colour in colours)[: 3 * side]
        rows += [b"\0" + row] * tile
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"".join(rows[:side]))
    parts = ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )
