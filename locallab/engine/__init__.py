"""Continuous batching over llama.cpp. The only room that touches llama_cpp; no asyncio, no HTTP, no JSON."""

from locallab.engine.embedding.embedder import Embedder
from locallab.engine.engine import Engine, ModelInfo
from locallab.engine.llama import build_features
from locallab.engine.request import (
    Constraint,
    Delivery,
    EngineStats,
    FimTokens,
    FinishReason,
    Kind,
    Listener,
    SamplingParams,
    TokenEvent,
    Usage,
)
from locallab.engine.totals import Histogram, Totals

__all__ = [
    "Constraint",
    "Delivery",
    "Embedder",
    "Engine",
    "EngineStats",
    "FimTokens",
    "FinishReason",
    "Histogram",
    "Kind",
    "Listener",
    "ModelInfo",
    "SamplingParams",
    "TokenEvent",
    "Totals",
    "Usage",
    "build_features",
]
