"""The assistant's tasks and their prompts: templates from a file, filled from the request."""

from __future__ import annotations

import dataclasses
import os
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
"""The field of each task's template that takes the prompt. chat has no template: its prompt is sent unchanged."""

TOPICS: Mapping[str, Sequence[str]] = {"templates": tuple(FIELDS), "system": TASKS, "json": ("debug", "audit")}
"""The keys of a file, and the tasks of each."""

SHIPPED = Path(__file__).with_name("tasks.yaml")

_FIELD = re.compile(r"\{([A-Za-z_]\w*)\}")


@dataclasses.dataclass(frozen=True, slots=True)
class Templates:
    """The texts of all tasks: the user's message, the system message, and the system message for an answer in JSON."""

    templates: Mapping[str, str]
    system: Mapping[str, str]
    json: Mapping[str, str]

    @classmethod
    def load(cls, *paths: Path) -> Templates:
        """Load the shipped texts, overridden by those of each file in turn. Raises ConfigError with the file and the key."""
        texts: dict[str, dict[str, str]] = {topic: {} for topic in TOPICS}
        for path in (SHIPPED, *paths):
            for topic, task, text in _texts(path):
                texts[topic][task] = text
        return cls(**texts)

    def messages(
        self, task: str, prompt: str, *, language: str | None = None, history: Sequence[Message] = (), as_json: bool = False
    ) -> list[Message]:
        """Return the conversation to answer. A system message in the history of a chat replaces the task's own."""
        values = {"language": language or "", FIELDS.get(task, ""): numbered(prompt) if task == "audit" else prompt}
        system = _filled((self.json if as_json else self.system)[task], values).strip()
        if task == "chat" and any(message.role == "system" for message in history):
            system = ""
        opening = [Message("system", system)] if system else []
        user = _filled(self.templates[task], values) if task in FIELDS else prompt
        return [*opening, *history, Message("user", user)]


def overrides(setting: str | None) -> list[Path]:
    """Return the user's own file: that of the setting `templates`, else templates.yaml of the configuration folder, if any."""
    if setting:
        return [Path(os.path.expanduser(setting))]
    own = config_home() / "templates.yaml"
    return [own] if own.is_file() else []


def numbered(code: str) -> str:
    """Return the code with a number before each line, so that a model need not count."""
    lines = code.splitlines() or [""]
    width = len(str(len(lines)))
    return "\n".join(f"{number:{width}} | {line}" for number, line in enumerate(lines, 1))


def _filled(template: str, values: Mapping[str, str]) -> str:
    """Replace the fields in one pass, so that values stay as they are. Without a language, drop the lines that name it."""
    if not values["language"]:
        template = "\n".join(line for line in template.split("\n") if "{language}" not in line)
    return _FIELD.sub(lambda field: values.get(field[1], field[0]), template)


def _texts(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yield (key, task, text) of a file, each checked. Raises ConfigError."""
    try:
        document = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"templates: {path}: {error.strerror or error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: must hold a mapping with the keys {', '.join(TOPICS)}")
    for topic, texts in document.items():
        if topic not in TOPICS:
            raise ConfigError(f"{path}: unknown key {topic!r}; known: {', '.join(TOPICS)}")
        if not isinstance(texts, dict):
            raise ConfigError(f"{path}: {topic}: must be a mapping from task to text, got {texts!r}")
        for task, text in texts.items():
            _check(f"{path}: {topic}", topic, task, text)
            yield topic, task, text


def _check(where: str, topic: str, task: Any, text: Any) -> None:
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
