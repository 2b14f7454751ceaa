"""The formats, and which one a model writes."""

from __future__ import annotations

from collections.abc import Sequence

from locallab.chat.tools.deepseek import DeepSeek, DeepSeekR1
from locallab.chat.tools.format import ToolFormat
from locallab.chat.tools.functionary import FunctionTags, Recipients
from locallab.chat.tools.gemma import FunctionGemma, Gemma
from locallab.chat.tools.generic import Generic
from locallab.chat.tools.glm import Glm
from locallab.chat.tools.harmony import Harmony
from locallab.chat.tools.hermes import Hermes
from locallab.chat.tools.listed import Apriel, Granite, Phi
from locallab.chat.tools.llama3 import Llama3
from locallab.chat.tools.mistral import Mistral, MistralArray
from locallab.chat.tools.qwen_coder import QwenCoder

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
    QwenCoder(),
    Glm(),
    Hermes(),
    FunctionTags(),
    Llama3(),
    Generic(),
)
"""In the order in which they are tried: what is more particular comes first, the last one takes every model."""


def choose(template: str) -> ToolFormat:
    """The format of a model with this chat template ("" for none)."""
    return next(tool_format for tool_format in FORMATS if tool_format.matches(template))
