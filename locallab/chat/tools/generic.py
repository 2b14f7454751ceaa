"""For models that never learned to call tools: the prompt tells them how, in the commonest shape."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import ClassVar

from locallab.chat.tools.format import Tool
from locallab.chat.tools.hermes import BEGIN, END, Hermes


class Generic(Hermes):
    name: ClassVar[str] = "generic"
    controls: ClassVar[tuple[str, ...]] = ()

    def matches(self, template: str) -> bool:
        return True

    def instructions(self, tools: Sequence[Tool]) -> str:
        """A system message that lists the tools and says how to call one."""
        listed = "\n".join(
            json.dumps({"name": tool.name, "description": tool.description, "parameters": tool.parameters}, ensure_ascii=False)
            for tool in tools
        )
        example = f'{BEGIN}\n{{"name": "<name of the tool>", "arguments": {{<arguments as JSON>}}}}\n{END}'
        return (
            f"You can call these tools, one JSON object a line:\n{listed}\n\n"
            f"To call a tool, answer with nothing but\n{example}\n"
            "and wait for its result. Call a tool only when it helps; otherwise answer in plain words."
        )
