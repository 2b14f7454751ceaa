"""Known fields that the bodies of llama.cpp's routes do not have."""

from __future__ import annotations

from locallab.server.fields.constraint import Structured
from locallab.server.fields.table import EMPTY, Others, refused, unused

LLAMA: Others = {
    **Structured.OTHERS,
    "n": refused("use n_cmpl", off=(1, *EMPTY)),
    "stream_options": unused("the last event has the figures"),
    "echo": refused("/v1/completions has echo"),
    "logprobs": refused("use n_probs"),
}
