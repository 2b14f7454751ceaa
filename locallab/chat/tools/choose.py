"""The formats, and which one a model writes."""

from __future__ import annotations

from collections.abc import Sequence

from locallab.chat.tools.format import ToolFormat
from locallab.chat.tools.generic import Generic
from locallab.chat.tools.hermes import Hermes

FORMATS: Sequence[ToolFormat] = (Hermes(), Generic())
"""In the order in which they are tried: what is more particular comes first, the last one takes every model."""


def choose(template: str) -> ToolFormat:
    """The format of a model with this chat template ("" for none)."""
    return next(tool_format for tool_format in FORMATS if tool_format.matches(template))
