"""A model, a thin layer over llama.h, the reference for every call here. It owns its native memory.

Only `Model.tokenize` and the vocabulary look-ups are thread-safe.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from locallab.engine import openmp

openmp.prepare(os.environ.get(openmp.SETTING) or "gnu")

import llama_cpp

from locallab.engine import amx, devices, llama_log
from locallab.engine.placement import Placement
from locallab.engine.request import FimTokens
from locallab.errors import EngineFailure, ModelLoadError
from locallab.memory_model import KV_BYTES

Memory = Literal["attention", "window", "recurrent", "hybrid"]

KV_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 8, "bf16": 30}

logger = logging.getLogger(__name__)


llama_cpp.llama_backend_init()


class Model:
    """The weights and the vocabulary of one GGUF file (llama_model, llama_vocab)."""

    def __init__(self, path: Path, gpu_layers: int, *, vocab_only: bool = False, placement: Placement | None = None) -> None:
        """Load `path` (llama_model_load_from_file), or only vocabulary and metadata. A `placement` says where all goes,
        not only how many layers to a GPU. Raises ModelLoadError with llama.cpp's own reason, ConfigError for a device that is
        not there."""
        check_file(path)
        params = llama_cpp.llama_model_default_params()
        self._kept = (placement or Placement(gpu_layers)).fill(params)
        params.vocab_only = vocab_only
        if compiler := miscompiled_amx():
            logger.info("llama.cpp was built by %s, which miscompiles AMX: AMX is disabled; see `locallab doctor`", compiler)
            params.use_extra_bufts = False
        if not vocab_only:
            openmp.announce()
        with llama_log.captured() as problems:
            self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise ModelLoadError(path, problems.reason("llama.cpp gave no reason"))
        self.path = path
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        self.n_vocab: int = llama_cpp.llama_vocab_n_tokens(self._vocab)
        if self.n_vocab == 0:
            self.close()
            raise ModelLoadError(path, "this model has no vocabulary")
        self._pieces: dict[int, bytes] = {}
        self.end_tokens = frozenset(t for t in range(self.n_vocab) if llama_cpp.llama_vocab_is_eog(self._vocab, t))

    @property
    def handle(self) -> int:
        """The llama_model pointer."""
        return self._model  # type: ignore[no-any-return]

    @property
    def vocabulary(self) -> int:
        """The llama_vocab pointer."""
        return self._vocab  # type: ignore[no-any-return]

    @property
    def description(self) -> str:
        """Architecture, number of parameters and quantization, such as "llama 135M Q4_1" (llama_model_desc)."""
        buffer = ctypes.create_string_buffer(256)
        llama_cpp.llama_model_desc(self._model, buffer, len(buffer))
        architecture, _, quantization = buffer.value.decode("utf-8", "replace").split(" ", 2)
        millions = self.n_params / 1e6
        return f"{architecture} {f'{millions / 1000:.1f}B' if millions >= 1000 else f'{millions:.0f}M'} {quantization}"

    @property
    def size_bytes(self) -> int:
        """Size of all tensors (llama_model_size)."""
        return int(llama_cpp.llama_model_size(self._model))

    @property
    def n_params(self) -> int:
        """Number of parameters (llama_model_n_params)."""
        return int(llama_cpp.llama_model_n_params(self._model))

    @property
    def n_ctx_train(self) -> int:
        """Tokens of context that the model was trained for (llama_model_n_ctx_train)."""
        return int(llama_cpp.llama_model_n_ctx_train(self._model))

    @property
    def n_layer(self) -> int:
        """Number of layers, without the output (llama_model_n_layer)."""
        return int(llama_cpp.llama_model_n_layer(self._model))

    @property
    def n_head(self) -> int:
        """Attention heads per layer (llama_model_n_head)."""
        return int(llama_cpp.llama_model_n_head(self._model))

    @property
    def places(self) -> int:
        """The numbers that place an embedding: 4 with M-RoPE, else 1 (llama_model_rope_type)."""
        several = (llama_cpp.LLAMA_ROPE_TYPE_MROPE, llama_cpp.LLAMA_ROPE_TYPE_IMROPE)
        return 4 if llama_cpp.llama_model_rope_type(self._model) in several else 1

    @property
    def keeps_state(self) -> bool:
        """True if a sequence has a running state, which cannot be rewound (llama_model_is_recurrent, _is_hybrid)."""
        return bool(llama_cpp.llama_model_is_recurrent(self._model) or llama_cpp.llama_model_is_hybrid(self._model))

    @property
    def memory(self) -> Memory:
        """The kind of memory of earlier tokens (llama_model_is_recurrent, _is_hybrid, llama_model_n_swa)."""
        if llama_cpp.llama_model_is_hybrid(self._model):
            return "hybrid"
        if llama_cpp.llama_model_is_recurrent(self._model):
            return "recurrent"
        return "window" if self.sliding_window else "attention"

    @property
    def has_decoder(self) -> bool:
        """False for models that only encode (llama_model_has_decoder)."""
        return bool(llama_cpp.llama_model_has_decoder(self._model))

    @property
    def sliding_window(self) -> int:
        """Tokens in the window of sliding-window layers; 0 for full attention (llama_model_n_swa)."""
        return int(llama_cpp.llama_model_n_swa(self._model))

    @property
    def fim(self) -> FimTokens | None:
        """The fill-in-the-middle tokens (llama_vocab_fim_*); None unless there are those for prefix, suffix and middle."""
        prefix, suffix, middle, repo, separator, pad = (
            token if token >= 0 else None
            for token in (
                llama_cpp.llama_vocab_fim_pre(self._vocab),
                llama_cpp.llama_vocab_fim_suf(self._vocab),
                llama_cpp.llama_vocab_fim_mid(self._vocab),
                llama_cpp.llama_vocab_fim_rep(self._vocab),
                llama_cpp.llama_vocab_fim_sep(self._vocab),
                llama_cpp.llama_vocab_fim_pad(self._vocab),
            )
        )
        if prefix is None or suffix is None or middle is None:
            return None
        bos = llama_cpp.llama_vocab_bos(self._vocab) if self.add_bos else None
        return FimTokens(prefix=prefix, suffix=suffix, middle=middle, repo=repo, separator=separator, pad=pad, bos=bos)

    @property
    def native_tokenizer(self) -> tuple[int, int]:
        """The addresses of the llama_vocab and of llama_tokenize, for libraries that call it; valid until `close`."""
        function = ctypes.cast(llama_cpp.llama_cpp._lib.llama_tokenize, ctypes.c_void_p)
        return self._vocab, function.value or 0

    @property
    def chat_template(self) -> str | None:
        """The default chat template as Jinja source (llama_model_chat_template); None where llama.cpp guesses a name."""
        template = llama_cpp.llama_model_chat_template(self._model, None)
        return template.decode("utf-8", "replace") if template and b"{" in template else None

    @property
    def named_templates(self) -> dict[str, str]:
        """The chat templates of the file for requests with tools or documents, by their names (llama_model_chat_template)."""
        found = {name: llama_cpp.llama_model_chat_template(self._model, name.encode()) for name in ("tool_use", "rag")}
        return {name: template.decode("utf-8", "replace") for name, template in found.items() if template}

    @property
    def add_bos(self) -> bool:
        """True if a prompt begins with the BOS token (llama_vocab_get_add_bos)."""
        return bool(llama_cpp.llama_vocab_get_add_bos(self._vocab))

    @property
    def bos(self) -> str:
        """Text of the BOS token; empty without one (llama_vocab_bos)."""
        return self._special_text(llama_cpp.llama_vocab_bos(self._vocab))

    @property
    def eos(self) -> str:
        """Text of the EOS token; empty without one (llama_vocab_eos)."""
        return self._special_text(llama_cpp.llama_vocab_eos(self._vocab))

    def meta(self, key: str) -> str | None:
        """Return a scalar of the GGUF metadata as text (llama_model_meta_val_str); `{arch}` in `key` is the architecture."""
        buffer = ctypes.create_string_buffer(4096)
        if "{arch}" in key:
            key = key.replace("{arch}", self.meta("general.architecture") or "")
        n = llama_cpp.llama_model_meta_val_str(self._model, key.encode(), buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace") if n >= 0 else None

    def kv_bytes_per_token(self, kv_type: str, kv_type_v: str | None = None) -> int:
        """Return the maximum bytes of KV cache per token, with every layer counted as an attention layer. Values are of
        `kv_type_v`, by default as the keys."""
        heads = int(self.meta("{arch}.attention.head_count") or llama_cpp.llama_model_n_head(self._model) or 1)
        default = llama_cpp.llama_model_n_embd(self._model) // max(1, heads)
        key = int(self.meta("{arch}.attention.key_length") or default)
        latent = self.meta("{arch}.attention.key_length_mla")  # one vector for both
        value = 0 if latent else int(self.meta("{arch}.attention.value_length") or default)
        n_head_kv = int(llama_cpp.llama_model_n_head_kv(self._model)) or 1
        each = key * KV_BYTES[kv_type] + value * KV_BYTES[kv_type_v or kv_type]
        return int(self.n_layer * n_head_kv * each)

    @property
    def vocabulary_type(self) -> int:
        """One of llama_cpp.LLAMA_VOCAB_TYPE_* (llama_vocab_type)."""
        return int(llama_cpp.llama_vocab_type(self._vocab))

    def attributes(self, token: int) -> int:
        """Return the sum of a token's llama_cpp.LLAMA_TOKEN_ATTR_* (llama_vocab_get_attr)."""
        return int(llama_cpp.llama_vocab_get_attr(self._vocab, token))

    def tokenize(self, text: str | bytes, *, add_special: bool, parse_special: bool) -> list[int]:
        """Return the token ids of a short text (llama_tokenize). Thread-safe. Raises EngineFailure.

        Texts of clients go through `Tokenizer`: llama.cpp recurses into words and is quadratic in control tokens.
        """
        data = text.encode("utf-8", "replace") if isinstance(text, str) else text
        room = len(data) + 8
        for _ in range(2):  # a vocabulary that writes a space as a character of three bytes may need more room
            buffer = (llama_cpp.llama_token * room)()
            n = llama_cpp.llama_tokenize(self._vocab, data, len(data), buffer, room, add_special, parse_special)
            if n >= 0:
                return list(buffer[:n])
            room = max(room, -n)
        raise EngineFailure(f"llama_tokenize failed: {n}")

    def piece(self, token: int) -> bytes:
        """Return the bytes of a token; empty for control tokens (llama_token_to_piece). Cached."""
        found = self._pieces.get(token)
        if found is None:
            found = self._pieces[token] = self._to_piece(token, special=False)
        return found

    def markup(self, token: int) -> bytes:
        """Return the name of a token without bytes, such as "<|im_end|>"; empty for other tokens (llama_token_to_piece)."""
        return b"" if self.piece(token) else self._to_piece(token, special=True)

    def name(self, token: int) -> bytes:
        """Return the text of a token, control tokens included (llama_token_to_piece)."""
        return self._to_piece(token, special=True)

    def text(self, tokens: Iterable[int]) -> str:
        """Return the text of tokens, control tokens included; invalid UTF-8 becomes U+FFFD."""
        return b"".join(map(self.name, tokens)).decode("utf-8", "replace")

    @functools.cached_property
    def suppressed_tokens(self) -> frozenset[int]:
        """The tokens that the model's file forbids in answers (llama_vocab_get_suppress_tokens)."""
        count = ctypes.c_int32()
        tokens = llama_cpp.llama_vocab_get_suppress_tokens(self._vocab, ctypes.byref(count))
        return frozenset(tokens[: count.value] if count.value > 0 else ())

    @functools.cached_property
    def control_tokens(self) -> Mapping[str, int]:
        """The control tokens by their texts (llama_vocab_is_control). Takes 42 ms for a vocabulary of 49,152, once."""
        found = [t for t in range(self.n_vocab) if llama_cpp.llama_vocab_is_control(self._vocab, t)]
        return {text: token for token in found if (text := self.name(token).decode("utf-8", "replace"))}

    def close(self) -> None:
        """Free the model (llama_model_free)."""
        if self._model:
            llama_cpp.llama_model_free(self._model)
            self._model = None

    def _special_text(self, token: int) -> str:
        return self._to_piece(token, special=True).decode("utf-8", "replace") if token >= 0 else ""

    def _to_piece(self, token: int, *, special: bool) -> bytes:
        """Wrap llama_token_to_piece; `special` renders control tokens."""
        buffer = ctypes.create_string_buffer(64)
        n = llama_cpp.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, special)
        if n < 0:
            buffer = ctypes.create_string_buffer(-n)
            n = llama_cpp.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, special)
        return buffer.raw[:n]


def check_file(path: Path) -> None:
    """Raise ModelLoadError for a path that is no GGUF file, in plainer words than llama.cpp's."""
    try:
        if path.exists() and not path.is_file():
            raise ModelLoadError(path, "this is not a file")
        with path.open("rb") as file:
            magic = file.read(4)
    except FileNotFoundError:
        raise ModelLoadError(path, "there is no such file") from None
    except OSError as error:
        raise ModelLoadError(path, error.strerror or str(error)) from None
    if magic != b"GGUF":
        raise ModelLoadError(path, "this is not a GGUF file")


def supports_gpu() -> bool:
    """Return True if this llama.cpp was built for a GPU and finds one (llama_supports_gpu_offload)."""
    return bool(llama_cpp.llama_supports_gpu_offload())


def system_info() -> str:
    """Return the features that llama.cpp was built with, as "<backend> : <feature> = 1 | ..." (llama_print_system_info)."""
    return str(llama_cpp.llama_print_system_info().decode("utf-8", "replace").strip())


def miscompiled_amx() -> str | None:
    """Return the compiler that miscompiled llama.cpp's AMX code, if any. `Model` then disables AMX (use_extra_bufts)."""
    return amx.miscompiled(system_info())


def build_features() -> dict[str, object]:
    """Return facts about the loaded llama.cpp as JSON-able values."""
    return {
        "llama_cpp_python": llama_cpp.__version__,
        "gpu_offload": bool(llama_cpp.llama_supports_gpu_offload()),
        "cuda": "CUDA : " in system_info(),
        "mmap": bool(llama_cpp.llama_supports_mmap()),
        "miscompiled_amx": miscompiled_amx(),
        "system_info": system_info(),
        "devices": [{"name": each.name, "description": each.description, "kind": each.kind} for each in devices.devices()],
        "openmp": dataclasses.asdict(openmp.runtime()),
    }
