"""Continuous batching over llama.cpp. The only room that touches llama_cpp; no asyncio, no HTTP, no JSON."""

from locallab.engine.caller import LOCAL, Caller
from locallab.engine.embedding.embedder import EmbeddingEngine
from locallab.engine.engine import Engine, ModelInfo
from locallab.engine.llama import build_features
from locallab.engine.post import LoopPost, Post
from locallab.engine.request import (
    Constraint,
    EngineStats,
    FimTokens,
    FinishReason,
    Kind,
    Listener,
    SamplingParams,
    TokenEvent,
    Usage,
)
from locallab.engine.text_engine import TextEngine
from locallab.engine.totals import Histogram, Totals

__all__ = [
    "LOCAL",
    "Caller",
    "Constraint",
    "EmbeddingEngine",
    "Engine",
    "EngineStats",
    "FimTokens",
    "FinishReason",
    "Histogram",
    "Kind",
    "Listener",
    "LoopPost",
    "ModelInfo",
    "Post",
    "SamplingParams",
    "TextEngine",
    "TokenEvent",
    "Totals",
    "Usage",
    "build_features",
]
