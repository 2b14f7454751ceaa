"""Continuous batching over llama.cpp. The only room that touches llama_cpp; no asyncio, no HTTP, no JSON."""

from locallab.engine.engine import Engine, ModelInfo
from locallab.engine.llama import build_features
from locallab.engine.request import (
    Constraint,
    Delivery,
    EngineStats,
    FimTokens,
    FinishReason,
    Listener,
    SamplingParams,
    TokenEvent,
    Usage,
)
from locallab.engine.timings import Histogram, Totals

__all__ = [
    "Constraint",
    "Delivery",
    "Engine",
    "EngineStats",
    "FimTokens",
    "FinishReason",
    "Histogram",
    "Listener",
    "ModelInfo",
    "SamplingParams",
    "TokenEvent",
    "Totals",
    "Usage",
    "build_features",
]
