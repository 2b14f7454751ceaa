"""The examples of the API's documents, found in their Markdown."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "documents"
LOCALLAB, ASSISTANT = FOLDER / "locallab-api.md", FOLDER / "assistant-api.md"
DOCUMENTS = (LOCALLAB, ASSISTANT)

ROUTE = re.compile(r"(GET|POST) `?(/[\w/.-]*)`?")
PLACEHOLDERS: dict[str, Any] = {
    "string": "Hello",
    "string | null": None,
    "boolean": False,
    "integer | null": 16,
    "float": 0.5,
}
"""Types that one document has in place of values, and a value of each."""


@dataclasses.dataclass(frozen=True)
class Example:
    """A fenced block: the heading it stands below, the words right before it (such as "Request"), its language, its text."""

    document: Path
    heading: str
    label: str
    language: str
    text: str

    @property
    def route(self) -> tuple[str, str] | None:
        found = ROUTE.fullmatch(self.heading)
        return (found[1], found[2]) if found else None

    @property
    def is_answer(self) -> bool:
        return self.label.startswith("Response")

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    def __str__(self) -> str:
        return f"{self.document.stem}: {self.heading}: {self.label or self.language}"


def examples(document: Path) -> Iterator[Example]:
    heading = label = ""
    lines = iter(document.read_text().splitlines())
    for line in lines:
        if line.startswith("#"):
            heading, label = line.lstrip("# "), ""
        elif line.startswith("```"):
            text = "\n".join(iter(lambda: next(lines), "```"))
            yield Example(document, heading, label, line.removeprefix("```"), text)
            label = ""
        elif line.strip():
            label = line.strip(" *:").replace("**", "")


def routes(document: Path) -> list[tuple[str, str]]:
    """Yield every route that has a heading of its own."""
    headings = [line.lstrip("# ") for line in document.read_text().splitlines() if line.startswith("#")]
    return [(found[1], found[2]) for found in map(ROUTE.fullmatch, headings) if found]


ALL = [example for document in DOCUMENTS for example in examples(document)]


def filled(value: Any, **fields: Any) -> Any:
    """Return the value with real values in place of types; `fields` has some by name."""
    if isinstance(value, dict):
        return {name: fields.get(name, filled(inside, **fields)) for name, inside in value.items()}
    if isinstance(value, list):
        return [filled(inside, **fields) for inside in value]
    return PLACEHOLDERS.get(value, value) if isinstance(value, str) else value


def differences(documented: Any, real: Any, where: str = "") -> Iterator[str]:
    """List where a real answer lacks a documented field, or has another type. Additional fields do not matter."""
    if isinstance(documented, dict) and isinstance(real, dict):
        for name, inside in documented.items():
            if name not in real:
                yield f"{where}.{name} is missing"
            else:
                yield from differences(inside, real[name], f"{where}.{name}")
    elif isinstance(documented, list) and isinstance(real, list):
        if documented and not real:
            yield f"{where} is empty"
        for index, inside in enumerate(real):
            yield from differences(documented[0], inside, f"{where}[{index}]")
    elif type(documented) is not type(real):
        yield f"{where} is a {type(real).__name__}, documented is a {type(documented).__name__}"
