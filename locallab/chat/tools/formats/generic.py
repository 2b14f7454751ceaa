"""The most common format, explained in the prompt, for models not trained to call tools."""

from __future__ import annotations

from typing import ClassVar

from locallab.chat.tools.formats.hermes import Hermes


class Generic(Hermes):
    name: ClassVar[str] = "generic"
    controls: ClassVar[tuple[str, ...]] = ()

    def matches(self, template: str) -> bool:
        return True
