"""Known fields that the bodies of Ollama's routes do not have."""

from __future__ import annotations

from locallab.server.fields.constraint import constraints_refused
from locallab.server.fields.sampling import Sampling
from locallab.server.fields.table import Others, refused, unused

LOADING = unused("the server's settings and the machine decide how models are loaded")

OPTIONS: Others = {
    **Sampling.OTHERS,
    **dict.fromkeys(
        (
            *("num_batch", "num_gpu", "main_gpu", "low_vram", "f16_kv", "vocab_only", "use_mmap", "use_mlock", "num_thread"),
            *("numa", "embedding_only", "logits_all", "draft_num_predict"),
        ),
        LOADING,
    ),
    "num_keep": unused("a full context ends the answer, nothing is dropped"),
    "tfs_z": refused("leave it out, or set it to 1", off=(1,)),
    "penalize_newline": refused("leave it out, or set it to true", off=(True,)),
}

BODY: Others = {
    **constraints_refused("use format"),
    **dict.fromkeys(("truncate", "shift"), unused("a prompt that does not fit is refused, and a full context ends the answer")),
}

GENERATE: Others = {
    **BODY,
    "template": refused("the model's own is used, or none with raw"),
    "context": refused("send the conversation to /api/chat"),
    **dict.fromkeys(("width", "height", "steps"), refused("models make no images", off=(0,))),
}

EMBED: Others = {"options": LOADING}

PULL: Others = {
    "insecure": refused("models are fetched over TLS only"),
    "username": refused("models are fetched without credentials"),
    "password": refused("models are fetched without credentials"),
}

SHOW: Others = {
    "verbose": unused("vocabularies are not returned"),
    "system": unused("it is not returned"),
    "template": unused("it is not returned"),
    "options": unused("they are not returned"),
}
