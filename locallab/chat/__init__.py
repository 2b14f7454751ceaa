"""Conversations as text: neutral messages and the model's own chat template. Pure."""

from locallab.chat.messages import Message, ToolCall
from locallab.chat.repairs import normalize
from locallab.chat.templates import ChatTemplate

__all__ = ["ChatTemplate", "Message", "ToolCall", "normalize"]
