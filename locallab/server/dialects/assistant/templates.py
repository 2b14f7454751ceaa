"""The assistant's tasks and what they say to a model: templates from a file, filled with what a request brings."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from locallab.chat.messages import Message
from locallab.errors import ConfigError
from locallab.settings import config_home

TASKS = ("generate", "refactor", "debug", "audit", "document", "chat")

FIELDS: Mapping[str, str] = {"generate": "description", **dict.fromkeys(("refactor", "debug", "audit", "document"), "code")}
"""The field of each task's template that takes the prompt. chat has no template: its prompt goes as it is."""

TOPICS: Mapping[str, Sequence[str]] = {"templates": tuple(FIELDS), "system": TASKS, "json": ("debug", "audit")}
"""The keys of a file, and the tasks that each has a text for."""

SHIPPED = Path(__file__).with_name("tasks.yaml")

_FIELD = re.compile(r"\{([A-Za-z_]\w*)\}")


@dataclasses.dataclass(frozen=True, slots=True)
class Templates:
    """The texts of every task: the user's message, the system message, and the one for an answer in JSON."""

    templates: Mapping[str, str]
    system: Mapping[str, str]
    json: Mapping[str, str]

    @classmethod
    def load(cls, *paths: Path) -> Templates:
        """The shipped texts, overridden by those of each file in turn. Raises ConfigError that names the file and the key."""
        texts: dict[str, dict[str, str]] = {topic: {} for topic in TOPICS}
        for path in (SHIPPED, *paths):
            for topic, task, text in _texts(path):
                texts[topic][task] = text
        return cls(**texts)

    def messages(
        self, task: str, prompt: str, *, language: str | None = None, history: Sequence[Message] = (), as_json: bool = False
    ) -> list[Message]:
        """The conversation to answer. In a chat whose history has a system message of its own, that one counts."""
        values = {"language": language or "", FIELDS.get(task, ""): numbered(prompt) if task == "audit" else prompt}
        system = _filled((self.json if as_json else self.system)[task], values).strip()
        if task == "chat" and any(message.role == "system" for message in history):
            system = ""
        opening = [Message("system", system)] if system else []
        asked = _filled(self.templates[task], values) if task in FIELDS else prompt
        return [*opening, *history, Message("user", asked)]


def overrides(setting: str | None) -> list[Path]:
    """The user's own file: the one the setting `templates` names, else templates.yaml of the configuration folder, if any."""
    if setting:
        return [Path(setting).expanduser()]
    own = config_home() / "templates.yaml"
    return [own] if own.is_file() else []


def numbered(code: str) -> str:
    """The code with a number before each line, so that a model need not count."""
    lines = code.splitlines() or [""]
    width = len(str(len(lines)))
    return "\n".join(f"{number:{width}} | {line}" for number, line in enumerate(lines, 1))


def _filled(template: str, values: Mapping[str, str]) -> str:
    """The fields replaced, in one pass: what a value holds stays as it is. Without a language, no line speaks of it."""
    if not values["language"]:
        template = "\n".join(line for line in template.split("\n") if "{language}" not in line)
    return _FIELD.sub(lambda field: values.get(field[1], field[0]), template)


def _texts(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yields (key, task, text) of a file, each checked."""
    document = _read(path)
    for topic, texts in document.items():
        if topic not in TOPICS:
            raise ConfigError(f"{path}: unknown key {topic!r}; known: {', '.join(TOPICS)}")
        if not isinstance(texts, dict):
            raise ConfigError(f"{path}: {topic}: must be a mapping from task to text, got {texts!r}")
        for task, text in texts.items():
            yield topic, task, _checked(f"{path}: {topic}", topic, task, text)


def _read(path: Path) -> dict[Any, Any]:
    try:
        document = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"templates: {path}: {error.strerror or error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: must hold a mapping with the keys {', '.join(TOPICS)}")
    return document


def _checked(where: str, topic: str, task: Any, text: Any) -> str:
    if task not in TOPICS[topic]:
        raise ConfigError(f"{where}: unknown task {task!r}; known: {', '.join(TOPICS[topic])}")
    if not isinstance(text, str):
        raise ConfigError(f"{where}: {task}: must be a text, got {text!r}")
    known = {"language"} | ({FIELDS[task]} if topic == "templates" else set())
    for field in _FIELD.findall(text):
        if field not in known:
            names = ", ".join(f"{{{name}}}" for name in sorted(known))
            raise ConfigError(f"{where}: {task}: unknown field {{{field}}}; known: {names}")
    if topic == "templates" and f"{{{FIELDS[task]}}}" not in text:
        raise ConfigError(f"{where}: {task}: must hold the field {{{FIELDS[task]}}}")
    return text
