"""Settings of what the server listens on and lets in."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from msgspec import Meta


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MediaSettings:
    """Bounds of the pictures and sounds in requests."""

    media_bytes: Annotated[int, Meta(ge=1, le=2**30, description="maximum size of a picture or a sound, in bytes")] = 20 << 20
    media_pixels: Annotated[int, Meta(ge=1, le=80_000_000, description="maximum pixels of a picture, width times height")] = (
        50_000_000
    )
    media_seconds: Annotated[float, Meta(gt=0, le=86_400, description="maximum length of a sound, in seconds")] = 1800.0
    media_count: Annotated[int, Meta(ge=1, le=1000, description="maximum pictures and sounds in a request")] = 64
    allow_media_urls: Annotated[
        bool,
        Meta(description="fetch pictures and sounds that requests name by an http or https address; none of private networks"),
    ] = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ListenerSettings(MediaSettings):
    """The server's address: of the network, with TLS or without, or a Unix socket."""

    host: Annotated[str, Meta(description="address to listen on; localhost: 127.0.0.1 and ::1")] = "localhost"
    port: Annotated[int, Meta(ge=0, le=65535, description="port to listen on; 0: any free port")] = 8000
    tls_cert: Annotated[
        str | None,
        Meta(description="file of the certificate, with its chain, in PEM form: answer by https; read again when it changes"),
    ] = None
    tls_key: Annotated[str | None, Meta(description="file of the certificate's private key, in PEM form, no passphrase")] = None
    uds: Annotated[str | None, Meta(description="path of a Unix socket to listen on, in place of --host and --port")] = None
    uds_mode: Annotated[
        str, Meta(pattern="^[0-7]{3}$", description="permissions of that socket: who may write to it may connect")
    ] = "660"
