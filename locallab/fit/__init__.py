"""What of a model fits this machine, and how: from a GGUF header and the free memory to settings. Decides; loads nothing."""

from locallab.fit.apply import fit_model, fitted, model_shape
from locallab.fit.choice import Fit, Wishes, choose, layer
from locallab.fit.estimates import Estimate, Load, estimate
from locallab.fit.machine import Gpu, Machine
from locallab.fit.picks import Choice, Offer, offered, pick, unnamed
from locallab.fit.shapes import Shape, approximate, shape

__all__ = [
    "Choice",
    "Estimate",
    "Fit",
    "Gpu",
    "Load",
    "Machine",
    "Offer",
    "Shape",
    "Wishes",
    "approximate",
    "choose",
    "estimate",
    "fit_model",
    "fitted",
    "layer",
    "model_shape",
    "offered",
    "pick",
    "shape",
    "unnamed",
]
