"""Every request that is replayed. Adding one is adding a row."""

from collections.abc import Sequence

from locallab.clients.dialect_table import DIALECT_SHAPES
from locallab.clients.editor_table import EDITOR_SHAPES
from locallab.clients.program_table import PROGRAM_SHAPES
from locallab.clients.shape import Shape

SHAPES: Sequence[Shape] = [*PROGRAM_SHAPES, *EDITOR_SHAPES, *DIALECT_SHAPES]
