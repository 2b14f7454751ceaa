"""Tool calls: which format a model writes, how it is told about the tools, how its calls are enforced and read."""

from locallab.chat.tools.format import Lark, NewId, Tool, ToolChoice, ToolFormat, call_id
from locallab.chat.tools.registry import FORMATS, choose

__all__ = ["FORMATS", "Lark", "NewId", "Tool", "ToolChoice", "ToolFormat", "call_id", "choose"]
