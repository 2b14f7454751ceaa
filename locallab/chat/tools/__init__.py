"""Tool calls: the formats that models write, with the prompt, the grammar and the parser of each."""

from locallab.chat.tools.format import Lark, NewId, Tool, ToolChoice, ToolFormat, call_id
from locallab.chat.tools.registry import FORMATS, choose

__all__ = ["FORMATS", "Lark", "NewId", "Tool", "ToolChoice", "ToolFormat", "call_id", "choose"]
