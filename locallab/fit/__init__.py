"""Fitting models to this machine: from a GGUF header and the free memory to settings. Loads nothing."""

from locallab.fit.choice import Fit, Wishes, choose
from locallab.fit.estimates import Estimate, Load, estimate
from locallab.fit.fit_model import draft_shape, file_shape, fit_model, fitted, model_shape
from locallab.fit.machine import Gpu, Machine
from locallab.fit.model_shape import Shape, approximate, shape
from locallab.fit.placement_check import check as check_placement
from locallab.fit.recommend import Choice, Offer, offered, pick, unnamed
from locallab.fit.report import Fitting, Report
from locallab.fit.speed import Speed, expected

__all__ = [
    "Choice",
    "Estimate",
    "Fit",
    "Fitting",
    "Gpu",
    "Load",
    "Machine",
    "Offer",
    "Report",
    "Shape",
    "Speed",
    "Wishes",
    "approximate",
    "check_placement",
    "choose",
    "draft_shape",
    "estimate",
    "expected",
    "file_shape",
    "fit_model",
    "fitted",
    "model_shape",
    "offered",
    "pick",
    "shape",
    "unnamed",
]
