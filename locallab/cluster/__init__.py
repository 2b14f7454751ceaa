"""The same server on many machines: Ray Serve runs replicas of the engine, and requests go where their prefix is.

`serve run locallab.cluster:app` runs it on a Ray cluster, `locallab serve --cluster FILE` with this process as its front.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

VARIABLE = "LOCALLAB_CLUSTER"
"""The environment variable with the path of the configuration that `app` takes where it gets none."""


def app(args: Mapping[str, Any]) -> Any:
    """Return the application for Ray Serve. `args` are the fields of a configuration, as `locallab cluster config` prints
    them, or `config`, the path of its file; without any it is the file that LOCALLAB_CLUSTER names, else the registry's
    default model.

    Raises ConfigError, UnknownModel.
    """
    from locallab.cluster import config, launch

    launch.check_ray()
    path = args.get("config") or (os.environ.get(VARIABLE) if not args else None)
    found = config.read(path) if path else config.parse(dict(args), "args") if args else config.of()
    from locallab.cluster import ingress

    return ingress.application(found, path or "args")
