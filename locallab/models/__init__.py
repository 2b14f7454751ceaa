"""Models: the known ones (registry), where they come from (sources) and where their files are kept (store)."""

from locallab.models.registry import Registry, default_path, user_path
from locallab.models.sources import Progress, fetch
from locallab.models.spec import FileSource, HubSource, ModelSpec, Part, PypiSource, Source
from locallab.models.store import Store

__all__ = [
    "FileSource",
    "HubSource",
    "ModelSpec",
    "Part",
    "Progress",
    "PypiSource",
    "Registry",
    "Source",
    "Store",
    "default_path",
    "fetch",
    "user_path",
]
