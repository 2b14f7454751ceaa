"""All replayed requests. A new client is a new row."""

from collections.abc import Sequence

from locallab.replay.clients.aider import AIDER
from locallab.replay.clients.claude_code import CLAUDE_CODE
from locallab.replay.clients.cline import CLINE
from locallab.replay.clients.codex import CODEX
from locallab.replay.clients.continue_dev import CONTINUE
from locallab.replay.clients.cursor import CURSOR
from locallab.replay.clients.langchain import LANGCHAIN
from locallab.replay.clients.open_webui import OPEN_WEBUI
from locallab.replay.clients.openai_python import OPENAI_PYTHON
from locallab.replay.clients.opencode import AI_SDK
from locallab.replay.clients.roo import ROO
from locallab.replay.clients.zed import ZED
from locallab.replay.exchange import Exchange

EXCHANGES: Sequence[Exchange] = [
    *OPENAI_PYTHON,
    *AI_SDK,
    *AIDER,
    *LANGCHAIN,
    *OPEN_WEBUI,
    *CURSOR,
    *CLINE,
    *ROO,
    *CONTINUE,
    *ZED,
    *CODEX,
    *CLAUDE_CODE,
]
