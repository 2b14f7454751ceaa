"""Registry of the formats, and the choice of a model's format."""

from __future__ import annotations

from collections.abc import Sequence

from locallab.chat.tools.format import ToolFormat
from locallab.chat.tools.formats.deepseek import DeepSeek, DeepSeekR1
from locallab.chat.tools.formats.functionary import FunctionTags, Recipients
from locallab.chat.tools.formats.gemma import FunctionGemma, Gemma
from locallab.chat.tools.formats.generic import Generic
from locallab.chat.tools.formats.glm import Glm
from locallab.chat.tools.formats.harmony import Harmony
from locallab.chat.tools.formats.hermes import Hermes
from locallab.chat.tools.formats.json_array import Apriel, Firefunction, Granite, Phi
from locallab.chat.tools.formats.llama3 import Llama3
from locallab.chat.tools.formats.mistral import Mistral, MistralArray
from locallab.chat.tools.formats.qwen_coder import QwenCoder

FORMATS: Sequence[ToolFormat] = (
    Harmony(),
    Recipients(),
    DeepSeekR1(),
    DeepSeek(),
    Mistral(),
    MistralArray(),
    Gemma(),
    FunctionGemma(),
    Phi(),
    Granite(),
    Apriel(),
    Firefunction(),
    QwenCoder(),
    Glm(),
    Hermes(),
    FunctionTags(),
    Llama3(),
    Generic(),
)
"""Tried in this order: specific formats first; the last one matches every model."""


def choose(template: str) -> ToolFormat:
    """Return the format of a model with this chat template ("" for none)."""
    return next(tool_format for tool_format in FORMATS if tool_format.matches(template))
