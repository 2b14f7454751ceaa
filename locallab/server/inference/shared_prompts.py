"""System prompts that all callers may share in the prefix cache, even where their prefixes are kept apart."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from locallab.chat import Message
from locallab.chat.control_tokens import pieces
from locallab.chat.turn import ChatRequest
from locallab.engine.prefix_tree import common_length
from locallab.errors import ConfigError, InvalidField
from locallab.pool import Loaded
from locallab.server.inference.prompt import plan_chat, tokenize

log = logging.getLogger(__name__)


def read_prompts(setting: str) -> list[str]:
    """Return the texts of comma-separated files, without the blank lines at their ends. Raises ConfigError."""
    found = []
    for name in filter(None, (name.strip() for name in setting.split(","))):
        try:
            text = Path(name).expanduser().read_text("utf-8").rstrip()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is no UTF-8"
            raise ConfigError(f"shared_prompts: {name} cannot be read: {reason}; name text files") from None
        if not text:
            raise ConfigError(f"shared_prompts: {name} is empty; name files with a system prompt")
        found.append(text)
    return found


def share(texts: Sequence[str], loaded: Loaded) -> None:
    """Let all callers of a model share what its chats and its plain prompts that begin with a text have in common."""
    if loaded.engine.info.kind != "text":
        return
    prompts = [tokenize(loaded.engine, [text]) for text in texts]
    for text in texts:
        try:
            first, other = (_chat(loaded, text, user) for user in ("0", "A"))
        except InvalidField as error:
            log.warning("%s: a shared prompt cannot be shared in chats: %s", loaded.spec.id, error)
        else:
            prompts.append(first[: common_length(first, other)])
    loaded.text_engine.share(prompts)


def _chat(loaded: Loaded, system: str, user: str) -> list[int]:
    turn = plan_chat(loaded, ChatRequest(messages=[Message("system", system), Message("user", user)]))
    return tokenize(loaded.engine, pieces(turn.prompt))
