"""Examples of the OpenAPI document by method and path, taken from the API's documents in full."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MODEL = "qwen2.5-coder:7b-q4_k_m"
ANSWER = "def hello(name):\n    print(f'Hello {name}!')"
USAGE = {
    "prompt_tokens": 48,
    "completion_tokens": 15,
    "total_tokens": 63,
    "prompt_tokens_details": {"cached_tokens": 32},
}
MESSAGES = [{"role": "user", "content": "Why is the sky blue?"}]

EXAMPLES: Mapping[tuple[str, str], Mapping[str, Any]] = {
    ("POST", "/generate"): {"request": {"prompt": "Write a story about a robot", "temperature": 0.8}},
    ("POST", "/chat"): {"request": {"messages": MESSAGES, "max_length": 100}},
    ("POST", "/models/load"): {"request": {"model_id": "smollm2:135m"}},
    ("POST", "/models/unload"): {"request": {"model_id": "smollm2:135m"}},
    ("GET", "/api/v1/models/available"): {
        "answer": {
            "models": [{"name": MODEL, "size": "5.2GB", "context": 4096, "description": "...", "recommended": True}],
        }
    },
    ("GET", "/api/v1/models/current"): {
        "answer": {"name": MODEL, "size": "5.2GB", "loaded": True, "vram_usage": "5.2GB", "status": "ready"}
    },
    ("POST", "/api/v1/assistant/generate"): {
        "request": {
            "prompt": "def hello",
            "task": "generate",
            "language": "python",
            "max_tokens": 256,
            "temperature": 0.2,
        },
        "answer": {
            "response": ANSWER,
            "task": "generate",
            "tokens_used": 15,
            "model": MODEL,
            "finish_reason": "stop",
            "usage": USAGE,
            "code": ANSWER,
        },
    },
    ("POST", "/api/v1/assistant/refactor"): {"request": {"prompt": "for i in range(len(list)): print(i)", "task": "refactor"}},
    ("POST", "/api/v1/assistant/debug"): {"request": {"prompt": "buggy code here", "task": "debug"}},
    ("POST", "/api/v1/assistant/audit"): {"request": {"prompt": "code to audit", "task": "audit"}},
    ("POST", "/api/v1/assistant/document"): {"request": {"prompt": "def add(a, b): return a + b", "task": "document"}},
    ("POST", "/api/v1/assistant/chat"): {
        "request": {
            "prompt": "your question",
            "history": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}],
        }
    },
    ("POST", "/v1/chat/completions"): {"request": {"model": "smollm2:135m", "messages": MESSAGES}},
    ("POST", "/v1/embeddings"): {"request": {"input": ["The sky is blue.", "The sun is hot."]}},
    ("POST", "/v1/rerank"): {"request": {"query": "What is hot?", "documents": ["The sky is blue.", "The sun is hot."]}},
    ("POST", "/tokenize"): {"request": {"content": "Hello, world!"}},
    ("POST", "/v1/completions"): {"request": {"model": "smollm2:135m", "prompt": "Once upon a time", "max_tokens": 50}},
}
