"""What clients of other makers send, replayed: whether a server answers each of them in a way it does not break on."""

from locallab.clients.replay import Outcome, replay
from locallab.clients.shape import Shape
from locallab.clients.table import SHAPES

__all__ = ["SHAPES", "Outcome", "Shape", "replay"]
