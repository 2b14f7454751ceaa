"""For models that never learned to call tools: the prompt tells them how, in the commonest shape."""

from __future__ import annotations

from typing import ClassVar

from locallab.chat.tools.formats.hermes import Hermes


class Generic(Hermes):
    name: ClassVar[str] = "generic"
    controls: ClassVar[tuple[str, ...]] = ()

    def matches(self, template: str) -> bool:
        return True
