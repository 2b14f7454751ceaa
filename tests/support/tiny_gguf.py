"""Tiny GGUF models with random weights, one of each kind of memory: written in milliseconds, run in as many.

They say nothing sensible, but what they say depends sharply on everything that came before, so that a wrong cell, position
or state shows in the next few tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import gguf
import numpy as np

from locallab.chat.known_templates import CHATML

ARCHITECTURES = {
    "llama": "llama",
    "mamba": "mamba",
    "lfm2": "lfm2",
    "gemma3": "gemma3",
    "gpt-oss": "gpt-oss",
    "qwen35": "qwen35",
    "lfm2-window": "lfm2",
    "qwen2vl": "qwen2vl",
}
"""The kinds of model, and what each calls itself in its metadata: full attention; recurrent; hybrid; sliding window; sliding
window with attention sinks and experts; hybrid with a gated delta net; hybrid whose attention layers all have a window; full
attention with positions of several dimensions."""

WINDOW = 16
"""Window of the sliding-window layers in tokens, including the newest one."""

BOS, EOS, FIRST_PLAIN = 1, 2, 3
N_VOCAB = FIRST_PLAIN + 256 + 26
CONTEXT = 512

_EMBED, _HEADS, _KV_HEADS, _HEAD, _FEED_FORWARD, _LAYERS = 64, 4, 2, 16, 128, 4
_CONV, _STATE, _RANK = 4, 8, 4
_SHORT_CONV = 3
_SLIDING = [True, True, False, True]
_RECURRENT = [False, True, False, True]
_EXPERTS = 2
_DELTA_HEADS, _DELTA_KEY_HEADS, _DELTA_STATE = 4, 2, 16


Tokens = Sequence[tuple[str, gguf.TokenType]]
Template = str | list[dict[str, str]]


def write(
    path: Path,
    architecture: str,
    *,
    seed: int = 0,
    without: Iterable[str] = (),
    called: str | None = None,
    more: Tokens = (),
    weights: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    facts: Mapping[str, float | list[int]] = MappingProxyType({}),
    template: Template = CHATML,
    plus: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> Path:
    """Write a model of a kind of ARCHITECTURES to `path`, and return it. The same arguments give the same bytes.

    `without` names tensors to leave out; `called` is the architecture to claim in the metadata; `more` are tokens behind the
    N_VOCAB that every such model has; `weights` is the type of the matrices whose rows are made of whole blocks; `facts` are
    further metadata; `template` is the chat template, or several with their names; `plus` is added to matrices of these names.
    """
    model = _Tiny(path, architecture, seed, frozenset(without), called, more, weights, template, plus)
    model.state(facts)
    model.close()
    return path


class _Tiny:
    def __init__(
        self,
        path: Path,
        architecture: str,
        seed: int,
        without: frozenset[str],
        called: str | None,
        more: Tokens,
        weights: gguf.GGMLQuantizationType,
        template: Template,
        plus: Mapping[str, np.ndarray],
    ) -> None:
        n_vocab = N_VOCAB + len(more)
        self._more = more
        self._random = np.random.default_rng(seed)
        self._without = without
        self._weights = weights
        self._template = template
        self._plus = plus
        self._writer = gguf.GGUFWriter(path, called or ARCHITECTURES[architecture])
        self._facts()
        self._vocabulary()
        self._matrix("token_embd.weight", n_vocab, _EMBED, scale=1 / _EMBED**0.5 if architecture == "gemma3" else 1)
        self._ones("token_embd_norm.weight" if ARCHITECTURES[architecture] == "lfm2" else "output_norm.weight", _EMBED)
        self._matrix("output.weight", n_vocab, _EMBED, scale=4 / _EMBED**0.5)
        getattr(self, f"_{architecture.replace('-', '_')}")()

    def state(self, facts: Mapping[str, float | list[int]]) -> None:
        for key, value in facts.items():
            if isinstance(value, list):
                self._writer.add_array(key, value)
            elif isinstance(value, bool):
                self._writer.add_bool(key, value)
            elif isinstance(value, int):
                self._writer.add_int32(key, value)
            else:
                self._writer.add_float32(key, value)

    def close(self) -> None:
        self._writer.write_header_to_file()
        self._writer.write_kv_data_to_file()
        self._writer.write_tensors_to_file()
        self._writer.close()

    def _llama(self) -> None:
        self._attention_facts(_KV_HEADS)
        for layer in range(_LAYERS):
            self._ones(f"blk.{layer}.attn_norm.weight", _EMBED)
            self._attention(layer)
            self._feed_forward(layer)

    def _qwen2vl(self) -> None:
        self._writer.add_rope_dimension_sections([4, 2, 2, 0])
        self._llama()
        for layer in range(_LAYERS):
            for part, heads in (("q", _HEADS), ("k", _KV_HEADS), ("v", _KV_HEADS)):
                self._full(f"blk.{layer}.attn_{part}.bias", 0, heads * _HEAD)

    def _gemma3(self) -> None:
        self._attention_facts(_KV_HEADS)
        self._writer.add_sliding_window(WINDOW)
        self._writer.add_sliding_window_pattern(_SLIDING)
        for layer in range(_LAYERS):
            self._ones(f"blk.{layer}.attn_norm.weight", _EMBED)
            self._attention(layer)
            self._head_norms(layer)
            self._ones(f"blk.{layer}.post_attention_norm.weight", _EMBED)
            self._feed_forward(layer)
            self._ones(f"blk.{layer}.post_ffw_norm.weight", _EMBED)

    def _lfm2(self) -> None:
        self._attention_facts([0 if recurrent else _KV_HEADS for recurrent in _RECURRENT])
        self._writer.add_shortconv_l_cache(_SHORT_CONV)
        for layer, recurrent in enumerate(_RECURRENT):
            self._ones(f"blk.{layer}.attn_norm.weight", _EMBED)
            if recurrent:
                self._matrix(f"blk.{layer}.shortconv.conv.weight", _EMBED, _SHORT_CONV)
                self._matrix(f"blk.{layer}.shortconv.in_proj.weight", 3 * _EMBED, _EMBED)
                self._matrix(f"blk.{layer}.shortconv.out_proj.weight", _EMBED, _EMBED)
            else:
                self._attention(layer)
                self._head_norms(layer)
            self._feed_forward(layer)

    def _lfm2_window(self) -> None:
        self._writer.add_sliding_window(WINDOW)
        self._lfm2()

    def _gpt_oss(self) -> None:
        """Write a model that uses both of its experts for every token: rounding would pick another one now and then."""
        self._attention_facts(_KV_HEADS)
        self._writer.add_sliding_window(WINDOW)
        self._writer.add_sliding_window_pattern(_SLIDING)
        self._writer.add_expert_count(_EXPERTS)
        self._writer.add_expert_used_count(_EXPERTS)
        self._writer.add_expert_feed_forward_length(_FEED_FORWARD)
        for layer in range(_LAYERS):
            self._ones(f"blk.{layer}.attn_norm.weight", _EMBED)
            self._attention(layer)
            self._full(f"blk.{layer}.attn_output.bias", 0, _EMBED)
            self._full(f"blk.{layer}.attn_sinks.weight", 1, _HEADS)
            self._ones(f"blk.{layer}.post_attention_norm.weight", _EMBED)
            self._matrix(f"blk.{layer}.ffn_gate_inp.weight", _EXPERTS, _EMBED)
            self._full(f"blk.{layer}.ffn_gate_inp.bias", 0, _EXPERTS)
            self._experts(f"blk.{layer}.ffn_gate_exps", _FEED_FORWARD, _EMBED)
            self._experts(f"blk.{layer}.ffn_up_exps", _FEED_FORWARD, _EMBED)
            self._experts(f"blk.{layer}.ffn_down_exps", _EMBED, _FEED_FORWARD)

    def _qwen35(self) -> None:
        inner, keys = _DELTA_HEADS * _DELTA_STATE, _DELTA_KEY_HEADS * _DELTA_STATE
        self._attention_facts(_KV_HEADS)
        self._writer.add_rope_dimension_sections([4, 2, 2, 0])
        self._writer.add_full_attention_interval(2)
        self._writer.add_ssm_conv_kernel(_CONV)
        self._writer.add_ssm_inner_size(inner)
        self._writer.add_ssm_state_size(_DELTA_STATE)
        self._writer.add_ssm_time_step_rank(_DELTA_HEADS)
        self._writer.add_ssm_group_count(_DELTA_KEY_HEADS)
        for layer in range(_LAYERS):
            self._ones(f"blk.{layer}.attn_norm.weight", _EMBED)
            self._ones(f"blk.{layer}.post_attention_norm.weight", _EMBED)
            if layer % 2:
                self._attention(layer, gated=True)
                self._head_norms(layer)
            else:
                self._matrix(f"blk.{layer}.attn_qkv.weight", 2 * keys + inner, _EMBED)
                self._matrix(f"blk.{layer}.attn_gate.weight", inner, _EMBED)
                self._matrix(f"blk.{layer}.ssm_conv1d.weight", 2 * keys + inner, _CONV)
                self._full(f"blk.{layer}.ssm_dt.bias", -3, _DELTA_HEADS)  # a state that remembers long
                self._full(f"blk.{layer}.ssm_a", -0.5, _DELTA_HEADS)
                self._matrix(f"blk.{layer}.ssm_beta.weight", _DELTA_HEADS, _EMBED)
                self._matrix(f"blk.{layer}.ssm_alpha.weight", _DELTA_HEADS, _EMBED)
                self._ones(f"blk.{layer}.ssm_norm.weight", _DELTA_STATE)
                self._matrix(f"blk.{layer}.ssm_out.weight", _EMBED, inner, scale=2 / inner**0.5)
            self._feed_forward_weights(layer)

    def _mamba(self) -> None:
        inner = 2 * _EMBED
        self._writer.add_head_count(0)
        self._writer.add_feed_forward_length(0)
        self._writer.add_ssm_conv_kernel(_CONV)
        self._writer.add_ssm_inner_size(inner)
        self._writer.add_ssm_state_size(_STATE)
        self._writer.add_ssm_time_step_rank(_RANK)
        for layer in range(_LAYERS):
            self._ones(f"blk.{layer}.attn_norm.weight", _EMBED)
            self._matrix(f"blk.{layer}.ssm_in.weight", 2 * inner, _EMBED)
            self._matrix(f"blk.{layer}.ssm_conv1d.weight", inner, _CONV)
            self._full(f"blk.{layer}.ssm_conv1d.bias", 0, inner)
            self._matrix(f"blk.{layer}.ssm_x.weight", _RANK + 2 * _STATE, inner)
            self._matrix(f"blk.{layer}.ssm_dt.weight", inner, _RANK)
            self._full(f"blk.{layer}.ssm_dt.bias", -3, inner)  # small steps: a state that remembers long
            self._add(f"blk.{layer}.ssm_a", np.tile(-np.arange(1, _STATE + 1, dtype=np.float32) / _STATE, (inner, 1)))
            self._ones(f"blk.{layer}.ssm_d", inner)
            self._matrix(f"blk.{layer}.ssm_out.weight", _EMBED, inner, scale=2 / inner**0.5)

    def _facts(self) -> None:
        self._writer.add_context_length(CONTEXT)
        self._writer.add_embedding_length(_EMBED)
        self._writer.add_block_count(_LAYERS)
        self._writer.add_layer_norm_rms_eps(1e-5)

    def _attention_facts(self, kv_heads: int | list[int]) -> None:
        self._writer.add_feed_forward_length(_FEED_FORWARD)
        self._writer.add_head_count(_HEADS)
        self._writer.add_head_count_kv(kv_heads)
        self._writer.add_key_length(_HEAD)
        self._writer.add_value_length(_HEAD)

    def _vocabulary(self) -> None:
        """Write a SentencePiece vocabulary: three specials, all bytes, the letters, and the requested tokens."""
        letters = [chr(ord("a") + i) for i in range(26)]
        types = gguf.TokenType
        self._writer.add_tokenizer_model("llama")
        texts, kinds = [text for text, _ in self._more], [kind for _, kind in self._more]
        self._writer.add_token_list(["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters, *texts])
        self._writer.add_token_scores([0.0] * (N_VOCAB + len(texts)))
        self._writer.add_token_types([types.UNKNOWN, *[types.CONTROL] * 2, *[types.BYTE] * 256, *[types.NORMAL] * 26, *kinds])
        self._writer.add_bos_token_id(BOS)
        self._writer.add_chat_template(self._template)
        self._writer.add_eos_token_id(EOS)
        self._writer.add_unk_token_id(0)

    def _attention(self, layer: int, gated: bool = False) -> None:
        """Write weights of sharp attention, so that its inputs matter. `gated`: each head's query comes with a gate."""
        name = f"blk.{layer}.attn_"
        self._matrix(f"{name}q.weight", _HEADS * _HEAD * (2 if gated else 1), _EMBED, scale=1.5 / _EMBED**0.5)
        self._matrix(f"{name}k.weight", _KV_HEADS * _HEAD, _EMBED, scale=1.5 / _EMBED**0.5)
        self._matrix(f"{name}v.weight", _KV_HEADS * _HEAD, _EMBED, scale=1.5 / _EMBED**0.5)
        self._matrix(f"{name}output.weight", _EMBED, _HEADS * _HEAD, scale=2 / _EMBED**0.5)

    def _head_norms(self, layer: int) -> None:
        self._full(f"blk.{layer}.attn_q_norm.weight", 1.5, _HEAD)
        self._full(f"blk.{layer}.attn_k_norm.weight", 1.5, _HEAD)

    def _feed_forward(self, layer: int) -> None:
        self._ones(f"blk.{layer}.ffn_norm.weight", _EMBED)
        self._feed_forward_weights(layer)

    def _feed_forward_weights(self, layer: int) -> None:
        self._matrix(f"blk.{layer}.ffn_gate.weight", _FEED_FORWARD, _EMBED)
        self._matrix(f"blk.{layer}.ffn_up.weight", _FEED_FORWARD, _EMBED)
        self._matrix(f"blk.{layer}.ffn_down.weight", _EMBED, _FEED_FORWARD)

    def _matrix(self, name: str, rows: int, columns: int, scale: float | None = None) -> None:
        """Write random weights of deviation `scale`; by default the output is about as large as the input."""
        deviation = columns**-0.5 if scale is None else scale
        values = self._random.normal(0, deviation, (rows, columns)).astype(np.float32) + self._plus.get(name, np.float32(0))
        whole = columns % gguf.GGML_QUANT_SIZES[self._weights][0] == 0
        kind = self._weights if whole else gguf.GGMLQuantizationType.F32
        self._add(name, gguf.quants.quantize(values, kind), kind)

    def _experts(self, name: str, rows: int, columns: int) -> None:
        values = self._random.normal(0, columns**-0.5, (_EXPERTS, rows, columns)).astype(np.float32)
        self._add(f"{name}.weight", gguf.quants.quantize(values, self._weights), self._weights)
        self._add(f"{name}.bias", np.zeros((_EXPERTS, rows), np.float32))

    def _ones(self, name: str, size: int) -> None:
        self._full(name, 1, size)

    def _full(self, name: str, value: float, size: int) -> None:
        self._add(name, np.full(size, value, np.float32))

    def _add(self, name: str, values: np.ndarray, type: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32) -> None:
        if name not in self._without:
            self._writer.add_tensor(name, values, raw_dtype=type)
