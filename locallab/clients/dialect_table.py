"""What clients of other dialects send: Codex, Claude Code, and Cline by way of Ollama's API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from locallab.clients import facts, samples
from locallab.clients.dialects import message, message_stream, ollama_stream, response_stream
from locallab.clients.making import get
from locallab.clients.said import is_model
from locallab.clients.samples import AMPLE, MAY_CALL, READS_FILE, SHORT, Json
from locallab.clients.shape import MODEL, TOO_LONG, Check, KeyStyle, Shape


def said(text: str, role: str = "user") -> Json:
    return {"type": "message", "role": role, "content": [{"type": "input_text", "text": text}]}


def function(name: str = "read_file", parameters: Json = samples.PARAMETERS) -> Json:
    return {"type": "function", "name": name, "description": "Reads a file.", "strict": False, "parameters": parameters}


CODEX_TOOLS = [
    function(),
    function("finish", samples.NO_PARAMETERS),
    {"type": "custom", "name": "apply_patch", "format": {"type": "grammar", "syntax": "lark", "definition": 'start: "x"'}},
    {"type": "web_search", "external_web_access": False},
    {"type": "local_shell"},
    {"type": "namespace", "name": "mcp", "tools": []},
    {"type": "image_generation", "output_format": "png"},
]
CODEX_BODY: Json = {
    "model": MODEL,
    "instructions": "You are Codex.",
    "input": [said("Sandboxed.", "developer"), said("Read a file.")],
    "tools": CODEX_TOOLS,
    "tool_choice": "auto",
    "parallel_tool_calls": False,
    "reasoning": {"effort": "medium", "summary": "auto"},
    "store": False,
    "stream": True,
    "include": ["reasoning.encrypted_content"],
    "prompt_cache_key": "conversation-1",
    "text": {"verbosity": "low"},
    "max_output_tokens": SHORT,
}
CODEX_HISTORY = [
    said("Read a file."),
    {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": None},
    {"type": "function_call", "name": "read_file", "arguments": '{"path": "README.md"}', "call_id": "call_1"},
    {"type": "function_call_output", "call_id": "call_1", "output": "# Hello"},
]


def codex(doing: str, check: Check, **body: Any) -> Shape:
    headers = {"originator": "codex_cli_rs", "accept": "text/event-stream", "session_id": "conversation-1"}
    return Shape(
        client="Codex CLI", doing=doing, path="/v1/responses", check=check, headers=headers, body={**CODEX_BODY, **body}
    )


CODEX: Sequence[Shape] = [
    codex("streams with tools of every type", response_stream(MAY_CALL)),
    codex("streams with a call, its result and reasoning without content", response_stream(MAY_CALL), input=CODEX_HISTORY),
    codex(
        "streams a call that must be made",
        response_stream(READS_FILE),
        tool_choice="required",
        tools=CODEX_TOOLS[:1],
        max_output_tokens=AMPLE,
    ),
    codex("asks for nothing", response_stream(), input=[], tools=[], instructions="", max_output_tokens=1),
    codex("streams a prompt beyond the context", facts.too_long_for_codex, input=[said(TOO_LONG)]),
    get("Codex CLI", "lists models", "/v1/models?client_version=0.99.0", facts.models),
]

BILLING = "x-anthropic-billing-header: cc_version=2.0; cc_entrypoint=cli;"
CLAUDE_TOOLS = [
    {
        "name": "read_file",
        "description": "Reads a file.",
        "input_schema": samples.PARAMETERS,
        "input_examples": [{"path": "README.md"}],
        "cache_control": {"type": "ephemeral"},
    },
    {"name": "finish", "input_schema": samples.NO_PARAMETERS, "eager_input_streaming": True},
    {"type": "web_search_20250305", "name": "web_search", "max_uses": 8},
]
CLAUDE_BODY: Json = {
    "model": "claude-haiku-4-5-20251001",
    "max_tokens": SHORT,
    "system": [
        samples.text_part(BILLING),
        samples.text_part("You are Claude Code.", cache_control={"type": "ephemeral", "ttl": "1h"}),
    ],
    "messages": [
        {"role": "user", "content": [samples.text_part("Read a file.", cache_control={"type": "ephemeral"})]},
        {"role": "system", "content": "Plan mode is on."},
    ],
    "tools": CLAUDE_TOOLS,
    "metadata": {"user_id": "user_1"},
    "stream": True,
}
CLAUDE_HISTORY = [
    {"role": "user", "content": "Read a file."},
    {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "Which one?", "signature": "c2lnbmVk"},
            {"type": "tool_use", "id": "toolu_1", "name": "read_file", "input": {"path": "README.md"}},
        ],
    },
    {
        "role": "user",
        "content": [
            {"type": "tool_result", "tool_use_id": "toolu_1", "content": [samples.text_part("# Hello")], "is_error": False},
            samples.text_part("And now?"),
        ],
    },
]


def claude(
    doing: str,
    check: Check,
    *,
    path: str = "/v1/messages?beta=true",
    key: KeyStyle = "x-api-key",
    wrong_key: bool = False,
    **more: Any,
) -> Shape:
    return Shape(
        client="Claude Code",
        doing=doing,
        path=path,
        check=check,
        headers={
            "anthropic-version": "2023-06-01",
            "anthropic-beta": "claude-code-20250219,unheard-of-2027-01-01",
            "x-app": "cli",
        },
        key=key,
        wrong_key=wrong_key,
        body={**CLAUDE_BODY, **more},
    )


TOKENS = "/v1/messages/count_tokens?beta=true"
CLAUDE_CODE: Sequence[Shape] = [
    Shape(
        client="Claude Code", doing="looks whether somebody answers", method="HEAD", path="/", check=facts.code(200), key="none"
    ),
    Shape(client="Claude Code", doing="says hello", method="HEAD", path="/api/hello", check=facts.code(200), key="none"),
    claude(
        "streams with tools, a system list and a system message later on",
        message_stream(MAY_CALL, is_model("claude-haiku-4-5-20251001")),
    ),
    claude("streams with thinking, a call and its result", message_stream(MAY_CALL), key="bearer", messages=CLAUDE_HISTORY),
    claude(
        "streams a call that must be made",
        message_stream(READS_FILE),
        tool_choice={"type": "any"},
        tools=CLAUDE_TOOLS[:1],
        max_tokens=AMPLE,
    ),
    claude(
        "names a tool that must be called",
        message(READS_FILE),
        stream=False,
        max_tokens=AMPLE,
        tool_choice={"type": "tool", "name": "read_file", "disable_parallel_tool_use": True},
    ),
    claude("counts tokens", facts.input_tokens, path=TOKENS, max_tokens=None, stream=None),
    claude(
        "streams a prompt beyond the context", facts.too_long_for_anthropic, messages=[{"role": "user", "content": TOO_LONG}]
    ),
    claude("sends a wrong body", facts.anthropic_refused(400), messages=None),
    claude("has a wrong key", facts.anthropic_refused(401), wrong_key=True),
]


def ollama(client: str, doing: str, check: Check, **body: Any) -> Shape:
    given = {"model": MODEL, "messages": [samples.user()], "options": {"num_ctx": 32768, "num_predict": SHORT}, **body}
    return Shape(client=client, doing=doing, path="/api/chat", check=check, body=given)


OLLAMA: Sequence[Shape] = [
    get("Cline", "lists Ollama's models", "/api/tags", facts.has("models.0.name", "models.0.model")),
    ollama("Cline", "streams by way of Ollama's API", ollama_stream()),
    ollama("Continue", "streams with tools by way of Ollama's API", ollama_stream(MAY_CALL), tools=samples.tools()),
    get("Open WebUI", "asks for Ollama's version", "/api/version", facts.has("version")),
    get("Open WebUI", "asks which of Ollama's models run", "/api/ps", facts.has("models", kind=list)),
    Shape(
        client="Zed",
        doing="asks Ollama's API what the model can",
        path="/api/show",
        body={"model": MODEL},
        check=facts.has("capabilities", kind=list),
    ),
    ollama("Open WebUI", "sends a wrong body by way of Ollama's API", facts.ollama_refused(400), messages="hello"),
]

DIALECT_SHAPES: Sequence[Shape] = [*CODEX, *CLAUDE_CODE, *OLLAMA]
