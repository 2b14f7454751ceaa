"""The API's description in OpenAPI 3.1, generated from the routes' contracts and their structs."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_origin

import msgspec
from starlette.routing import BaseRoute

from locallab.engine import SamplingParams
from locallab.server.areas import Area, area, owner
from locallab.server.dialects.dialect import Dialect
from locallab.server.dialects.registry import DIALECTS
from locallab.server.docs.examples import EXAMPLES
from locallab.server.docs.prose import ABOUT, EVENT, HEADERS, LINE, PARAMETERS, REASONS, SECURITY, TAGS, documented
from locallab.server.endpoint import Endpoint, Generating
from locallab.server.fields.body import RANGES
from locallab.server.fields.table import metas, nested, others
from locallab.server.streaming import EVENTS
from locallab.version import __version__

Schema = dict[str, Any]

FORM = "multipart/form-data"
"""The other media type of a body whose struct has FORM set."""
SAFE = 2**53
"""Bounds from here on are omitted: few clients represent such JSON numbers exactly."""


DEFAULTS: Mapping[str, Any] = {
    field.name: field.default for field in dataclasses.fields(SamplingParams) if isinstance(field.default, (bool, int, float))
}
"""Defaults of the engine's sampling parameters."""


def method(endpoint: Endpoint) -> str:
    """Return the method that the route was defined with; Starlette adds HEAD to GET."""
    return min(endpoint.methods or {"GET"})


class _Schemas:
    """The structs of all contracts as JSON schemas, with the ranges and defaults that `fields` applies."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        bodies = [endpoint.contract.body for endpoint in endpoints]
        answers = [endpoint.contract.answer for endpoint in endpoints]
        types = [
            kind for kind in dict.fromkeys([*bodies, *answers, *(dialect.problem for dialect in DIALECTS)]) if kind is not None
        ]
        references, self.components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
        self._references = dict(zip(types, references, strict=True))
        for body in {body for body in bodies if body is not None and get_origin(body) is None}:
            for kind in (body, *nested(body).values()):
                schema = self.components[kind.__name__]
                _tighten(schema, {**DEFAULTS, **getattr(body, "DEFAULTS", {})})
                schema["description"] = "\n\n".join(filter(None, [schema.get("description"), *_others(kind)]))

    def reference(self, kind: Any) -> Schema:
        found: Schema = self._references[kind]
        return found

    def of(self, kind: type) -> Schema:
        found: Schema = self.components[self._references[kind]["$ref"].rpartition("/")[2]]
        return found


def _tighten(schema: Schema, defaults: Mapping[str, Any]) -> None:
    """Add the fields' ranges and defaults, which their types do not have. Mutates `schema`."""
    for name, field in schema["properties"].items():
        field.pop("default", None)  # always null, which means not set
        if name in defaults:
            field["default"] = defaults[name]
        for branch in field.get("anyOf", [field]):
            if name in RANGES and branch.get("type") in ("integer", "number"):
                low, high, closed = RANGES[name]
                bounds = {"minimum" if closed else "exclusiveMinimum": low, "maximum": high}
                branch.update({bound: value for bound, value in bounds.items() if abs(value) < SAFE})


def _others(kind: type) -> Iterator[str]:
    """Yield a paragraph for each effect that known fields have which the struct does not have."""
    found: dict[str, list[str]] = {}
    for name, other in others(kind).items():
        if name not in metas(kind):
            found.setdefault(other.effect, []).append(f"`{name}` ({other.about})")
    for effect, names in found.items():
        yield f"**{effect.capitalize()}:** {', '.join(names)}."


def _dialect(endpoint: Endpoint) -> Dialect:
    return owner(DIALECTS, endpoint.path)


def _area(endpoint: Endpoint) -> Area:
    return area(_dialect(endpoint), endpoint.path)


def _json(endpoint: Endpoint, schema: Schema, kind: str) -> dict[str, Schema]:
    example = EXAMPLES.get((method(endpoint), endpoint.path))
    shown = {"example": example[kind]} if example and kind in example else {}
    return {"application/json": {"schema": schema, **shown}}


def _headers(status: int, counted: bool = False) -> Schema:
    names = ["X-Request-ID"]
    if counted or status == 429:
        names += [name for name in HEADERS if name.startswith("X-RateLimit-")]
    if status in (429, 503):
        names.append("Retry-After")
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _success(endpoint: Endpoint, schemas: _Schemas) -> Schema:
    contract = endpoint.contract
    if contract.answer and contract.media_type != "application/json":
        content: Schema = {contract.media_type: {"schema": schemas.reference(contract.answer)}}
    elif contract.answer:
        content = _json(endpoint, schemas.reference(contract.answer), "answer")
    elif contract.media_type == "application/json":
        content = {"application/json": {"schema": {"type": "object"}}}
    else:
        content = {contract.media_type: {"schema": {"type": "string"}}}
    if contract.plain:
        content["text/plain"] = {"schema": {"type": "string"}}
    if contract.streams:
        content[contract.stream_type] = {"schema": EVENT if contract.stream_type == EVENTS else LINE}
    headers = _headers(200, _area(endpoint) not in ("open", "uncounted"))
    if isinstance(endpoint, Generating):
        headers["X-LocalLab-Cache"] = {"$ref": "#/components/headers/X-LocalLab-Cache"}
    return {
        "description": "the answer",
        "headers": headers,
        "content": content,
    }


def _failures(endpoint: Endpoint, schemas: _Schemas) -> dict[str, Schema]:
    """Return the responses other than 200 by names that end in the status; many routes share them."""
    contract = endpoint.contract
    statuses = {403, 500, *contract.errors}
    if contract.body:
        statuses |= {400, 413, 415}
    if _area(endpoint) != "open":
        statuses.add(401)
    if _area(endpoint) not in ("open", "uncounted"):
        statuses.add(429)
    dialect = _dialect(endpoint)
    content = {"application/json": {"schema": schemas.reference(dialect.problem)}}
    return {
        f"{dialect.name}-{status}": {"description": REASONS[status], "headers": _headers(status), "content": content}
        for status in sorted(statuses)
    }


def _operation(endpoint: Endpoint, schemas: _Schemas) -> Schema:
    contract = endpoint.contract
    operation_id = re.sub(r"\W+", "_", f"{method(endpoint).lower()}{endpoint.path_format}").strip("_")
    operation: Schema = {"operationId": operation_id, "summary": contract.summary, "tags": [contract.tag]}
    if contract.description:
        operation["description"] = contract.description
    if endpoint.param_convertors:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "description": PARAMETERS[name], "schema": {"type": "string"}}
            for name in endpoint.param_convertors
        ]
    if contract.body:
        needed = get_origin(contract.body) is list or bool(schemas.of(contract.body)["required"])
        content = _json(endpoint, schemas.reference(contract.body), "request")
        if getattr(contract.body, "FORM", False):
            content[FORM] = {"schema": schemas.reference(contract.body)}
        operation["requestBody"] = {"required": needed, "content": content}
    if _area(endpoint) != "open":
        operation["security"] = [{}, *({name: []} for name in SECURITY)]
    failures = {name.rpartition("-")[2]: {"$ref": f"#/components/responses/{name}"} for name in _failures(endpoint, schemas)}
    operation["responses"] = {"200": _success(endpoint, schemas), **failures}
    return operation


def _either(one: Schema, other: Schema) -> Schema:
    """Describe two operations of one path, which a header tells apart."""
    answers = [each["responses"]["200"]["content"]["application/json"]["schema"] for each in (one, other)]
    success = {**other["responses"]["200"], "content": {"application/json": {"schema": {"anyOf": answers}}}}
    described = "\n\n".join(filter(None, (one["summary"], one.get("description"), other.get("description"))))
    return {**other, "description": described, "responses": {**other["responses"], "200": success}}


def document(routes: Sequence[BaseRoute], root: str = "") -> Schema:
    """Describe every Endpoint among `routes`, which are below the path `root`. OpenAPI has no operation for a WebSocket:
    the text describes it."""
    endpoints = [route for route in routes if isinstance(route, Endpoint)]
    schemas = _Schemas(endpoints)
    paths: dict[str, Schema] = {}
    for endpoint in endpoints:
        methods, verb = paths.setdefault(endpoint.path_format, {}), method(endpoint).lower()
        operation = _operation(endpoint, schemas)
        methods[verb] = _either(methods[verb], operation) if verb in methods else operation
    tags = {name: text for dialect in DIALECTS for name, text in dialect.tags.items()} | TAGS
    return {
        "openapi": "3.1.0",
        "info": {"title": "LocalLab", "version": __version__, "description": ABOUT},
        "servers": [{"url": root or "/"}],
        "tags": [{"name": name, "description": f"{text}\n\n{documented(name)}"} for name, text in tags.items()],
        "paths": paths,
        "components": {
            "schemas": schemas.components,
            "responses": {name: body for endpoint in endpoints for name, body in _failures(endpoint, schemas).items()},
            "headers": HEADERS,
            "securitySchemes": SECURITY,
        },
    }
