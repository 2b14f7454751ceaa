"""What OpenAI's answers say about the service."""

from __future__ import annotations

import hashlib
import importlib.metadata
from typing import Annotated, Literal

from msgspec import Meta

from locallab.version import __version__

Tier = Literal["default"]
TIER: Tier = "default"
"""The only service tier that there is."""

_BUILD = f"{__version__}/{importlib.metadata.version('llama-cpp-python')}"

Fingerprint = Annotated[str, Meta(description="changes with the versions of LocalLab and of llama.cpp")]
FINGERPRINT = "fp_" + hashlib.sha256(_BUILD.encode()).hexdigest()[:10]
