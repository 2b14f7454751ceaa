"""A JSON answer."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from starlette.responses import Response


def reply(body: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(body), status, headers, "application/json")
