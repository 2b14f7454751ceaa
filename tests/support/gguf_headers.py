"""GGUF files of any size without weights: the tensors are holes in the file. For measuring the memory of models.

They have the layers and the widths of real models, and no vocabulary but its length, unless `spelled`: an engine needs one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np

F16, F32, MXFP4, Q4_K, Q8_0 = (gguf.GGMLQuantizationType[name] for name in ("F16", "F32", "MXFP4", "Q4_K", "Q8_0"))
Shapes = Iterator[tuple[str, tuple[int, ...]]]
BLOCK = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Made:
    """A model to write. `attention` are the layers with attention if not all have it; `window` is the sliding window; `trained`
    the trained context; `expert_type` the type of the experts, if it is another one."""

    architecture: str
    layers: int
    width: int
    vocabulary: int
    heads: int = 0
    kv_heads: int = 0
    head: int = 0
    feed_forward: int = 0
    experts: tuple[int, int, int] | None = None
    attention: frozenset[int] | None = None
    window: int = 0
    state: tuple[int, int, int] | None = None
    taps: int = 0
    tied: bool = True
    type: gguf.GGMLQuantizationType = Q4_K
    spelled: bool = False
    trained: int = 32768
    expert_type: gguf.GGMLQuantizationType | None = None

    def write(self, path: Path) -> Path:
        """Write the model to `path`, and return it."""
        writer = gguf.GGUFWriter(path, self.architecture)
        self._facts(writer)
        self._vocabulary(writer)
        for name, shape in self._tensors():
            self._announce(writer, name, shape)
        data = sum(-(-info.nbytes // BLOCK) * BLOCK for info in writer.tensors[0].values())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        (file,) = writer.fout or ()
        file.flush()
        file.truncate(-(-file.tell() // BLOCK) * BLOCK + data)
        writer.close()
        return path

    def _facts(self, writer: gguf.GGUFWriter) -> None:
        writer.add_context_length(self.trained)
        writer.add_embedding_length(self.width)
        writer.add_block_count(self.layers)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_feed_forward_length(self.feed_forward)
        writer.add_head_count(self.heads)
        self._heads(writer)
        if self.experts:
            count, used, width = self.experts
            writer.add_expert_count(count)
            writer.add_expert_used_count(used)
            writer.add_expert_feed_forward_length(width)
        if self.window:
            writer.add_sliding_window(self.window)
        if self.state:
            size, rank, groups = self.state
            writer.add_ssm_conv_kernel(4)
            writer.add_ssm_inner_size(2 * self.width)
            writer.add_ssm_state_size(size)
            writer.add_ssm_time_step_rank(rank)
            writer.add_ssm_group_count(groups)
        if self.taps:
            writer.add_shortconv_l_cache(self.taps)

    def _heads(self, writer: gguf.GGUFWriter) -> None:
        writer.add_head_count_kv([self.kv_heads if self._attends(i) else 0 for i in range(self.layers)])
        if self.head:
            writer.add_key_length(self.head)
            writer.add_value_length(self.head)

    def _vocabulary(self, writer: gguf.GGUFWriter) -> None:
        if not self.spelled:
            writer.add_tokenizer_model("none")
            writer.add_vocab_size(self.vocabulary)
            return
        types = gguf.TokenType
        plain = self.vocabulary - 259
        writer.add_tokenizer_model("llama")
        writer.add_token_list(
            ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *(f"t{i}" for i in range(plain))]
        )
        writer.add_token_scores([0.0] * self.vocabulary)
        writer.add_token_types([types.UNKNOWN, *[types.CONTROL] * 2, *[types.BYTE] * 256, *[types.NORMAL] * plain])

    def _tensors(self) -> Shapes:
        yield "token_embd.weight", (self.vocabulary, self.width)
        yield "token_embd_norm.weight" if self.taps else "output_norm.weight", (self.width,)
        if not self.tied:
            yield "output.weight", (self.vocabulary, self.width)
        for layer in range(self.layers):
            for name, shape in self._layer(layer):
                yield f"blk.{layer}.{name}", shape

    def _layer(self, layer: int) -> Shapes:
        yield "attn_norm.weight", (self.width,)
        if self._attends(layer):
            yield from self._attention()
        elif self.taps:
            yield "shortconv.conv.weight", (self.width, self.taps)
            yield "shortconv.in_proj.weight", (3 * self.width, self.width)
            yield "shortconv.out_proj.weight", (self.width, self.width)
        else:
            yield from self._recurrent()
        if self.experts:
            yield "ffn_norm.weight", (self.width,)
            yield from self._mixture(*self.experts)
        elif self.feed_forward:
            yield "ffn_norm.weight", (self.width,)
            yield from self._dense("", self.feed_forward)

    def _mixture(self, count: int, used: int, width: int) -> Shapes:
        yield "ffn_gate_inp.weight", (count, self.width)
        yield "ffn_gate_exps.weight", (count, width, self.width)
        yield "ffn_up_exps.weight", (count, width, self.width)
        yield "ffn_down_exps.weight", (count, self.width, width)

    def _dense(self, kind: str, width: int) -> Shapes:
        yield f"ffn_gate{kind}.weight", (width, self.width)
        yield f"ffn_up{kind}.weight", (width, self.width)
        yield f"ffn_down{kind}.weight", (self.width, width)

    def _attention(self) -> Shapes:
        head = self.head or self.width // self.heads
        yield "attn_q.weight", (self.heads * head, self.width)
        yield "attn_k.weight", (self.kv_heads * head, self.width)
        yield "attn_v.weight", (self.kv_heads * head, self.width)
        yield "attn_output.weight", (self.width, self.heads * head)
        if self.architecture == "qwen2":
            for name, heads in (("q", self.heads), ("k", self.kv_heads), ("v", self.kv_heads)):
                yield f"attn_{name}.bias", (heads * head,)
        if self.architecture in ("qwen3", "qwen3moe", "gemma3", "lfm2"):
            yield "attn_q_norm.weight", (head,)
            yield "attn_k_norm.weight", (head,)
        if self.architecture.startswith("gemma"):
            yield "post_attention_norm.weight", (self.width,)
            yield "post_ffw_norm.weight", (self.width,)

    def _recurrent(self) -> Shapes:
        assert self.state is not None
        size, rank, groups = self.state
        inner = 2 * self.width
        yield "ssm_out.weight", (self.width, inner)
        if self.architecture == "mamba":
            yield "ssm_in.weight", (2 * inner, self.width)
            yield "ssm_conv1d.weight", (inner, 4)
            yield "ssm_conv1d.bias", (inner,)
            yield "ssm_x.weight", (rank + 2 * size, inner)
            yield "ssm_dt.weight", (inner, rank)
            yield "ssm_dt.bias", (inner,)
            yield "ssm_a", (inner, size)
            yield "ssm_d", (inner,)
            return
        convolved = inner + 2 * groups * size
        yield "ssm_in.weight", (inner + convolved + rank, self.width)
        yield "ssm_conv1d.weight", (convolved, 4)
        yield "ssm_conv1d.bias", (convolved,)
        yield "ssm_dt.bias", (rank,)
        yield "ssm_a", (rank, 1)
        yield "ssm_d", (rank, 1)
        yield "ssm_norm.weight", (groups, inner // groups)

    def _attends(self, layer: int) -> bool:
        return bool(self.heads) and (self.attention is None or layer in self.attention)

    def _announce(self, writer: gguf.GGUFWriter, name: str, shape: tuple[int, ...]) -> None:
        """Add a tensor; small ones and those of odd widths are not quantized, as in real files."""
        exact = (
            "norm" in name
            or "bias" in name
            or "ssm_" in name.replace("ssm_in", "").replace("ssm_out", "")
            or "conv.weight" in name
        )
        usual = self.expert_type if self.expert_type and "_exps" in name else self.type
        kind = F32 if exact or len(shape) == 1 else usual
        block, size = gguf.GGML_QUANT_SIZES[kind]
        if shape[-1] % block:
            kind = Q8_0
            block, size = gguf.GGML_QUANT_SIZES[kind]
        if kind in (F16, F32):
            dtype = np.dtype(np.float16 if kind == F16 else np.float32)
            writer.add_tensor_info(name, shape, dtype, int(np.prod(shape)) * dtype.itemsize)
            return
        stored = (*shape[:-1], shape[-1] // block * size)
        writer.add_tensor_info(name, stored, np.dtype(np.uint8), int(np.prod(stored)), raw_dtype=kind)
