"""Continuous batching over llama.cpp. The only room that touches llama_cpp; no asyncio, no HTTP, no JSON."""

from locallab.engine.engine import Engine, ModelInfo
from locallab.engine.llama import build_features
from locallab.engine.request import Delivery, EngineStats, FinishReason, Listener, SamplingParams, TokenEvent, Usage

__all__ = [
    "Delivery",
    "Engine",
    "EngineStats",
    "FinishReason",
    "Listener",
    "ModelInfo",
    "SamplingParams",
    "TokenEvent",
    "Usage",
    "build_features",
]
