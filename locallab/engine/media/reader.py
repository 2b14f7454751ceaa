"""Reads attachments for a model: from the file that was sent to the runs of a prompt, the last ones kept."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

from locallab.engine.media.runs import Prompt, joined
from locallab.errors import InvalidField
from locallab.media.attachment import Attachment

if TYPE_CHECKING:
    from locallab.engine.media.projector import Projector

KEPT = 64 << 20
"""Bytes of prepared pictures and sounds that are kept: a prompt is read again for where it will part from the next one."""


class Reader:
    """Thread-safe. Two threads may read the same attachment at once."""

    def __init__(self, projector: Projector) -> None:
        self._projector = projector
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, str], tuple[Prompt, int]] = OrderedDict()
        self._size = 0

    def read(self, attachment: Attachment) -> Prompt:
        """Return an attachment as part of a prompt, after tens of milliseconds.

        Raises InvalidField, UnreadableMedia, MediaTooLarge.
        """
        key = attachment.kind, attachment.digest
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return _named(self._kept[key][0], attachment.field)
        prompt, size = self._prepared(attachment)
        with self._lock:
            if key not in self._kept:
                self._kept[key] = prompt, size
                self._size += size
            while self._size > KEPT:
                _, (_, dropped) = self._kept.popitem(last=False)
                self._size -= dropped
        return prompt

    def _prepared(self, attachment: Attachment) -> tuple[Prompt, int]:
        """Return it with the bytes that it takes. What a model does not take is refused before it is decoded."""
        projector, field = self._projector, attachment.field
        if attachment.kind == "audio":
            if not projector.hears:
                raise InvalidField(field, "this model takes no audio")
            from locallab.media.sounds import samples

            heard = samples(attachment, projector.rate)
            return projector.sound(heard, field), len(heard)
        if not projector.sees:
            raise InvalidField(field, "this model takes no images")
        from locallab.media.pictures import pixels

        width, height, rgb = pixels(attachment)
        return projector.picture(width, height, rgb, field), 4 * len(rgb)


def _named(prompt: Prompt, field: str) -> Prompt:
    """Return the same with `field` in errors."""
    again = joined([prompt])
    for run in again.runs:
        run.field = field
    return again
