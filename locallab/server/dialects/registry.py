"""All dialects of the server. A new one is a folder beside this file and a line here."""

from __future__ import annotations

from collections.abc import Sequence

from locallab.server.dialects.anthropic.routes import ANTHROPIC
from locallab.server.dialects.assistant.routes import ASSISTANT
from locallab.server.dialects.dialect import Dialect
from locallab.server.dialects.llamacpp.routes import LLAMACPP
from locallab.server.dialects.native.routes import NATIVE
from locallab.server.dialects.ollama.routes import OLLAMA
from locallab.server.dialects.openai.routes import OPENAI
from locallab.server.dialects.responses.routes import RESPONSES
from locallab.server.dialects.vllm.routes import VLLM

DIALECTS: Sequence[Dialect] = (NATIVE, ASSISTANT, ANTHROPIC, OPENAI, RESPONSES, OLLAMA, LLAMACPP, VLLM)
