"""What programs, libraries and chat pages send that speak OpenAI's chat completions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from locallab.clients import facts, samples
from locallab.clients.chatting import stream, whole
from locallab.clients.making import CHAT, chat, get, streaming
from locallab.clients.said import answers, has_logprobs, is_model, says_json
from locallab.clients.samples import AMPLE, MAY_CALL, READS_FILE, SHORT, user
from locallab.clients.shape import MODEL, TOO_LONG, Shape

STAINLESS = {"x-stainless-lang": "python", "x-stainless-os": "Linux", "x-stainless-retry-count": "0"}
UNSET = (
    *("frequency_penalty", "presence_penalty", "logit_bias", "logprobs", "top_logprobs", "n", "stop", "seed", "tools"),
    *("tool_choice", "parallel_tool_calls", "response_format", "user", "metadata", "store", "service_tier", "temperature"),
    *("top_p", "stream", "stream_options", "reasoning_effort", "modalities", "prediction", "functions", "function_call"),
)
NULLS: Mapping[str, Any] = dict.fromkeys(UNSET)
PLACE = says_json(city=str, coastal=bool)

OPENAI_PYTHON: Sequence[Shape] = [
    chat("openai-python", "sets every field to null", whole(), headers=STAINLESS, **NULLS),
    chat(
        "openai-python", "finds the name it asked for", whole(is_model("gpt-4o-mini")), headers=STAINLESS, model="gpt-4o-mini"
    ),
    streaming("openai-python", "streams without the usage", stream(), headers=STAINLESS, stream_options=None),
    get("openai-python", "lists models", "/v1/models", facts.models),
    get("openai-python", "looks up a model", f"/v1/models/{MODEL}", facts.model),
    chat(
        "openai-python",
        "names a tool that must be called",
        whole(READS_FILE),
        max_tokens=AMPLE,
        tools=samples.tools(strict=True),
        tool_choice=samples.named(),
    ),
    chat("openai-python", "sends a wrong body", facts.refused(400, param="messages"), messages=None),
    chat("openai-python", "sends a prompt beyond the context", facts.too_long, messages=[user(TOO_LONG)]),
    Shape(
        client="openai-python",
        doing="streams a completion",
        path="/v1/completions",
        check=facts.completion_stream,
        body={
            "model": MODEL,
            "prompt": "One, two,",
            "max_tokens": SHORT,
            "stream": True,
            "stream_options": {"include_usage": True},
        },
    ),
    chat("openai-python", "has a wrong key", facts.refused(401), wrong_key=True),
]

AI_SDK: Sequence[Shape] = [
    streaming(
        "opencode",
        "streams with a tool's result, the call without content",
        stream(MAY_CALL, usage=True),
        messages=samples.history(None),
        tools=samples.tools(),
        tool_choice="auto",
    ),
    streaming(
        "opencode",
        "streams a call that must be made",
        stream(READS_FILE, usage=True),
        max_tokens=AMPLE,
        tools=[samples.tool()],
        tool_choice="required",
    ),
    chat("opencode", "wants JSON of a schema", whole(PLACE), max_tokens=AMPLE, response_format=samples.json_schema()),
    get("opencode", "lists models", "/v1/models", facts.models),
]

AIDER: Sequence[Shape] = [
    streaming("aider", "streams", stream(), stream_options=None, temperature=0, model="local/a-model-nobody-knows"),
    chat("aider", "sends fields of its own", whole(), num_ctx=8192, extra_body={"a": 1}, timeout=600),
    chat("aider", "sends a wrong body", facts.refused(400), temperature="hot"),
    chat("aider", "sends a prompt beyond the context", facts.too_long, messages=[user(TOO_LONG)]),
]

LANGCHAIN: Sequence[Shape] = [
    chat(
        "LangChain",
        "wants JSON of a schema",
        whole(PLACE),
        max_completion_tokens=AMPLE,
        response_format=samples.json_schema(),
        messages=[{"role": "user", "content": [samples.text_part("Where is the Colosseum?")]}],
    ),
    streaming(
        "LangChain",
        "streams a call that must be made",
        stream(READS_FILE, usage=True),
        max_completion_tokens=AMPLE,
        tools=samples.tools(strict=True),
        tool_choice=samples.named(),
    ),
    chat("LangChain", "wants two answers", whole(answers(2)), n=2),
    chat("LangChain", "wants logprobs", whole(has_logprobs), logprobs=True, top_logprobs=2),
]

PAGE = {
    "origin": "http://localhost:3000",
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-api-key,ngrok-skip-browser-warning",
}
OPEN_WEBUI: Sequence[Shape] = [
    get("Open WebUI", "lists models", "/v1/models", facts.models),
    get("Open WebUI", "lists models below another base", "/models", facts.models),
    streaming(
        "Open WebUI",
        "streams with fields of its own",
        stream(),
        stream_options=None,
        session_id="a",
        chat_id="b",
        id="c",
        features={"web_search": False},
        variables={"{{USER_NAME}}": "ada"},
        background_tasks={"title_generation": True},
    ),
    Shape(
        client="Open WebUI",
        doing="asks from a page",
        method="OPTIONS",
        path=CHAT,
        headers=PAGE,
        key="none",
        check=facts.granted(PAGE["access-control-request-headers"].split(",")),
    ),
]

CURSOR: Sequence[Shape] = [
    chat("Cursor", "tries the key", whole(), max_tokens=1, path="/v1//chat/completions"),
    streaming(
        "Cursor",
        "streams with tools and lists of content",
        stream(MAY_CALL, usage=True),
        tools=samples.tools(),
        messages=[{"role": "user", "content": [samples.text_part("Read a file.")]}],
    ),
]

PROGRAM_SHAPES: Sequence[Shape] = [*OPENAI_PYTHON, *AI_SDK, *AIDER, *LANGCHAIN, *OPEN_WEBUI, *CURSOR]
