"""All replayed requests. A new client is a new row."""

from collections.abc import Sequence

from locallab.cli.doctor.replay.clients.aider import AIDER
from locallab.cli.doctor.replay.clients.claude_code import CLAUDE_CODE
from locallab.cli.doctor.replay.clients.cline import CLINE
from locallab.cli.doctor.replay.clients.codex import CODEX
from locallab.cli.doctor.replay.clients.continue_dev import CONTINUE
from locallab.cli.doctor.replay.clients.cursor import CURSOR
from locallab.cli.doctor.replay.clients.langchain import LANGCHAIN
from locallab.cli.doctor.replay.clients.open_webui import OPEN_WEBUI
from locallab.cli.doctor.replay.clients.openai_python import OPENAI_PYTHON
from locallab.cli.doctor.replay.clients.opencode import AI_SDK
from locallab.cli.doctor.replay.clients.roo import ROO
from locallab.cli.doctor.replay.clients.zed import ZED
from locallab.cli.doctor.replay.exchange import Exchange

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
