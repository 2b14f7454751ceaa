"""Certificates of an authority made for the tests."""

from __future__ import annotations

import dataclasses
import ssl
from pathlib import Path

import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)


@dataclasses.dataclass
class Certificate:
    """Files: a certificate, its key, and the certificate of the authority that has signed it."""

    cert: Path
    key: Path
    authority: Path

    def settings(self) -> dict[str, str]:
        return {"tls_cert": str(self.cert), "tls_key": str(self.key)}

    def flags(self) -> list[str]:
        return ["--tls-cert", str(self.cert), "--tls-key", str(self.key)]

    def trusting(self) -> ssl.SSLContext:
        """Return the context of a client that trusts the authority."""
        return ssl.create_default_context(cafile=str(self.authority))


def issue(folder: Path, *names: str, authority: trustme.CA | None = None, **options: object) -> Certificate:
    """Write a certificate for `names`, by default those of this machine, over what `folder` has."""
    authority = authority or trustme.CA()
    made = authority.issue_cert(*(names or ("localhost", "127.0.0.1")), **options)  # type: ignore[arg-type]
    paths = Certificate(folder / "cert.pem", folder / "key.pem", folder / "authority.pem")
    paths.cert.write_bytes(b"".join(each.bytes() for each in made.cert_chain_pems))
    made.private_key_pem.write_to_path(str(paths.key))
    authority.cert_pem.write_to_path(str(paths.authority))
    return paths


def with_passphrase(key: bytes) -> bytes:
    """Return the key, encrypted."""
    return load_pem_private_key(key, None).private_bytes(
        Encoding.PEM, PrivateFormat.TraditionalOpenSSL, BestAvailableEncryption(b"secret")
    )
