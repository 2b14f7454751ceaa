"""Small pictures and sounds in every format, made here; FLAC and MP3 without an encoder."""

from __future__ import annotations

import base64
import io
import math
import random
import struct
import wave
import zlib
from collections.abc import Callable, Mapping
from typing import Any

from PIL import Image

WIDTH, HEIGHT = 8, 6
RATE = 16_000


def drawn(width: int = WIDTH, height: int = HEIGHT, mode: str = "RGB") -> Image.Image:
    """Return a picture of which no two corners are alike."""
    image = Image.new("RGB", (width, height))
    image.putdata([(16 * x % 256, 32 * y % 256, 128) for y in range(height) for x in range(width)])
    return image.convert(mode)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(width: int = WIDTH, height: int = HEIGHT) -> bytes:
    return saved(drawn(width, height), "PNG")


def gif(*colours: str) -> bytes:
    """Return an animation with a frame for each colour."""
    first, *rest = [Image.new("RGB", (WIDTH, HEIGHT), colour) for colour in colours]
    return saved(first, "GIF", save_all=True, append_images=rest, duration=10)


def turned(orientation: int) -> bytes:
    """Return a JPEG whose EXIF says how to turn it."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(drawn(32, 16), "JPEG", quality=95, exif=exif.tobytes())


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_of_size(width: int, height: int) -> bytes:
    """Return a PNG of a few bytes whose header promises so many pixels."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(1 << 16))), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tone(seconds: float = 0.1, rate: int = RATE) -> list[int]:
    return [round(8000 * math.sin(2 * math.pi * 440 * index / rate)) for index in range(round(seconds * rate))]


def wav(seconds: float = 0.1, rate: int = RATE, channels: int = 1) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(channels)
        writer.setsampwidth(2)
        writer.setframerate(rate)
        writer.writeframes(b"".join(struct.pack("<h", each) * channels for each in tone(seconds, rate)))
    return file.getvalue()


def _crc(data: bytes, bits: int, polynomial: int) -> int:
    found = 0
    for byte in data:
        found ^= byte << (bits - 8)
        for _ in range(8):
            found = (found << 1) ^ (polynomial if found >> (bits - 1) else 0)
            found &= (1 << bits) - 1
    return found


def flac(seconds: float = 0.1, rate: int = RATE, told: int | None = None) -> bytes:
    """Return samples as they are, in FLAC's frames; the header says that there are `told` of them."""
    samples, size = tone(seconds, rate), 256
    samples = samples[: len(samples) // size * size]
    total = len(samples) if told is None else told
    packed = (rate << 44) | (15 << 36) | total  # one channel, 16 bits
    info = struct.pack(">HH", size, size) + bytes(6) + packed.to_bytes(8, "big") + bytes(16)
    data = b"fLaC" + b"\x80" + len(info).to_bytes(3, "big") + info
    for number in range(len(samples) // size):
        coded = bytes([number]) if number < 128 else bytes([0xC0 | number >> 6, 0x80 | number & 0x3F])
        head = b"\xff\xf8\x70\x08" + coded + struct.pack(">H", size - 1)
        head += bytes([_crc(head, 8, 0x07)])
        frame = head + b"\x02" + struct.pack(f">{size}h", *samples[number * size : (number + 1) * size])
        data += frame + struct.pack(">H", _crc(frame, 16, 0x8005))
    return data


def mp3(frames: int = 8) -> bytes:
    """Return silence: frames of 1,152 samples at 44.1 kHz with nothing in them."""
    return (b"\xff\xfb\x90\xc0" + bytes(413)) * frames


PICTURES: Mapping[str, Callable[[], bytes]] = {
    "PNG": png,
    "JPEG": lambda: saved(drawn(), "JPEG"),
    "WEBP": lambda: saved(drawn(), "WEBP", lossless=True),
    "GIF": lambda: gif("red", "blue"),
    "BMP": lambda: saved(drawn(), "BMP"),
}
SOUNDS: Mapping[str, Callable[[], bytes]] = {"WAV": wav, "FLAC": flac, "MP3": mp3}


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{encoded(data)}"


def damaged(data: bytes, seed: int) -> bytes:
    """Return a file with a few bytes changed, a part cut out, doubled or put elsewhere, or its end missing."""
    chance, body = random.Random(seed), bytearray(data)
    for _ in range(chance.randint(1, 4)):
        start = chance.randrange(len(body))
        end = min(len(body), start + chance.choice((1, 2, 4, 16, 64)))
        match chance.randrange(6):
            case 0:
                body[start] = chance.randrange(256)
            case 1:
                body[start:end] = chance.randbytes(end - start)
            case 2:
                body[start:end] = body[start:end] * 2
            case 3 if len(body) > 64:
                del body[start:end]
            case 4:
                body[start:end] = struct.pack(">I", chance.choice((0, 1, 0x7FFFFFFF, 0xFFFFFFFF)))[: end - start]
            case _ if len(body) > 64:
                del body[max(32, start) :]
    return bytes(body)
