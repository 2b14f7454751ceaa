"""What editors send that speak OpenAI's chat completions."""

from __future__ import annotations

from collections.abc import Sequence

from locallab.clients import facts, samples
from locallab.clients.chatting import stream, whole
from locallab.clients.making import chat, get, streaming
from locallab.clients.said import no_calls, one_call_at_most
from locallab.clients.samples import AMPLE, MAY_CALL, READS_FILE, SHORT, user
from locallab.clients.shape import MODEL, TOO_LONG, Shape

CLINE: Sequence[Shape] = [
    streaming(
        "Cline",
        "streams",
        stream(usage=True),
        temperature=0,
        messages=[{"role": "system", "content": "You are Cline."}, user()],
    ),
    streaming(
        "Cline",
        "streams with tools and lists of content",
        stream(MAY_CALL, usage=True),
        tools=samples.tools(strict=True),
        messages=[{"role": "user", "content": [samples.text_part("Read a file."), samples.text_part("<env/>")]}],
    ),
    streaming("Cline", "streams a prompt beyond the context", facts.too_long, messages=[user(TOO_LONG)]),
]

SYSTEM_LIST = {"role": "system", "content": [samples.text_part("You are Roo.", cache_control={"type": "ephemeral"})]}
ROO: Sequence[Shape] = [
    streaming(
        "Roo",
        "streams with tools, a system list and an effort",
        stream(MAY_CALL, usage=True),
        messages=[SYSTEM_LIST, user()],
        tools=samples.tools(strict=True),
        tool_choice="auto",
        parallel_tool_calls=True,
        max_completion_tokens=SHORT,
        reasoning_effort="medium",
        temperature=0,
    ),
    streaming(
        "Roo",
        "streams a call that must be made",
        stream(READS_FILE, usage=True),
        tools=[samples.tool(strict=True)],
        tool_choice="required",
        max_completion_tokens=AMPLE,
        reasoning_effort="minimal",
    ),
    get("Roo", "lists models", "/v1/models", facts.models),
    streaming("Roo", "streams a prompt beyond the context", facts.too_long, messages=[user(TOO_LONG)]),
]

BOTH_KEYS = {"api-key": "", "x-api-key": ""}
CONTINUE: Sequence[Shape] = [
    streaming(
        "Continue",
        "streams with tools, one call at most",
        stream(MAY_CALL, one_call_at_most, usage=True),
        messages=samples.history(" "),
        tools=samples.tools(),
        parallel_tool_calls=False,
        headers=BOTH_KEYS,
    ),
    chat("Continue", "sends a prediction", whole(), prediction={"type": "content", "content": "none"}, headers=BOTH_KEYS),
    chat("Continue", "sends its key twice", whole(), key="both"),
    Shape(
        client="Continue",
        doing="fills in code",
        path="/v1/fim/completions",
        check=facts.filled_in,
        body={"model": MODEL, "prompt": "def add(a, b):\n    ", "suffix": "\n", "max_tokens": SHORT, "stream": True},
    ),
    Shape(
        client="Continue",
        doing="streams by way of llama.cpp's API",
        path="/completion",
        check=facts.llama_stream,
        body={"prompt": "One, two,", "n_predict": SHORT, "stream": True, "temperature": 0, "stop": None, "raw": True},
    ),
    Shape(
        client="Continue",
        doing="ranks documents",
        path="/v1/rerank",
        check=facts.ranked,
        body={"model": MODEL, "query": "city", "documents": ["Oslo", "blue"]},
    ),
]

ZED: Sequence[Shape] = [
    streaming(
        "Zed",
        "streams with tools",
        stream(MAY_CALL, one_call_at_most, usage=True),
        tools=samples.tools(),
        max_completion_tokens=SHORT,
        prompt_cache_key="thread-1",
        reasoning_effort="low",
        parallel_tool_calls=False,
        tool_choice="auto",
        stop=[],
        temperature=1.0,
    ),
    streaming(
        "Zed",
        "streams a call that must be made",
        stream(READS_FILE, usage=True),
        tools=[samples.tool()],
        tool_choice="required",
        max_completion_tokens=AMPLE,
    ),
    streaming("Zed", "forbids calls", stream(no_calls, usage=True), tools=samples.tools(), tool_choice="none"),
    get("Zed", "reads the context out of the models", "/v1/models", facts.context_told),
    get("Zed", "asks llama.cpp's API for the context", "/props", facts.has("default_generation_settings.n_ctx", kind=int)),
]

EDITOR_SHAPES: Sequence[Shape] = [*CLINE, *ROO, *CONTINUE, *ZED]
