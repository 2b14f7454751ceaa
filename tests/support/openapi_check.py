"""An API by its OpenAPI document: operations, and checks of bodies and responses against them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jsonschema


@dataclasses.dataclass
class Described:
    api: dict[str, Any]

    def follow(self, reference: str) -> Any:
        at: Any = self.api
        for step in reference.removeprefix("#/").split("/"):
            at = at[step]
        return at

    def resolve(self, schema: dict[str, Any]) -> dict[str, Any]:
        return self.follow(schema["$ref"]) if "$ref" in schema else schema

    def operations(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Yield (method, path, operation) of each route."""
        for path, methods in self.api["paths"].items():
            for verb, operation in methods.items():
                yield verb, path, operation

    def operation(self, verb: str, path: str) -> dict[str, Any]:
        return self.api["paths"][path][verb]

    def body(self, operation: dict[str, Any]) -> dict[str, Any]:
        """Return the schema of the body's object, or of the objects in its list."""
        schema = self.resolve(operation["requestBody"]["content"]["application/json"]["schema"])
        return self.resolve(schema["items"]) if schema.get("type") == "array" else schema

    def examples(self) -> Iterator[tuple[dict[str, Any], Any]]:
        """Yield (schema, example) for each example."""
        for _, _, operation in self.operations():
            for holder in (operation.get("requestBody", {}), *map(self.resolve, operation["responses"].values())):
                for content in holder.get("content", {}).values():
                    if "example" in content:
                        yield content["schema"], content["example"]

    def check(self, value: Any, schema: dict[str, Any]) -> None:
        """Raise ValidationError for a value that does not match the schema."""
        jsonschema.Draft202012Validator({**schema, "components": self.api["components"]}).validate(value)

    def check_response(self, operation: dict[str, Any], response: Any) -> None:
        """Assert that the response's status, content type and values are described, and all fields of a successful one."""
        described = self.resolve(operation["responses"][str(response.status_code)])
        content = described["content"][response.headers["content-type"].partition(";")[0]]
        if response.headers["content-type"] == "application/json":
            self.check(response.json(), content["schema"])
            assert response.status_code != 200 or set(self.unknown(response.json(), content["schema"])) == set()

    def unknown(self, value: Any, schema: dict[str, Any], where: str = "") -> Iterator[str]:
        """Yield the fields of an answer that are not in its schema."""
        schema = self.resolve(schema)
        if not schema or "$schema" in schema:
            return
        choices = [self.resolve(choice) for choice in schema.get("anyOf", [schema])]
        if isinstance(value, list):
            items = next((choice["items"] for choice in choices if "items" in choice), {})
            for each in value:
                yield from self.unknown(each, items, f"{where}[]")
        elif isinstance(value, dict):
            objects = [choice["properties"] for choice in choices if "properties" in choice]
            if not objects:  # any object
                return
            known = max(objects, key=lambda properties: len(properties.keys() & value.keys()))
            for name, inside in value.items():
                if name not in known:
                    yield f"{where}.{name}"
                else:
                    yield from self.unknown(inside, known[name], f"{where}.{name}")
