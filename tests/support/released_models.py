"""The shapes of models that are released, by the configurations that their makers publish, as files without weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import gguf

from tests.support.gguf_headers import MXFP4, Q8_0, Made, Shapes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Released(Made):
    """`dense` are the first layers, without experts; `shared` is the width of the shared expert."""

    dense: int = 0
    shared: int = 0

    def _layer(self, layer: int) -> Shapes:
        if not self.experts or layer >= self.dense:
            yield from super()._layer(layer)
            if self.shared:
                yield from self._dense("_shexp", self.shared)
        else:
            yield from dataclasses.replace(self, experts=None, shared=0)._layer(layer)

    def _facts(self, writer: gguf.GGUFWriter) -> None:
        super()._facts(writer)
        if self.dense:
            writer.add_leading_dense_block_count(self.dense)


class GptOss(Released):
    """Attention with sinks, biases everywhere."""

    def _layer(self, layer: int) -> Shapes:
        assert self.experts is not None
        count, used, width = self.experts
        yield "attn_norm.weight", (self.width,)
        yield "post_attention_norm.weight", (self.width,)
        yield from self._attention()
        for name, size in (("q", self.heads), ("k", self.kv_heads), ("v", self.kv_heads)):
            yield f"attn_{name}.bias", (size * self.head,)
        yield "attn_output.bias", (self.width,)
        yield "attn_sinks.weight", (self.heads,)
        yield from self._mixture(count, used, width)
        yield "ffn_gate_inp.bias", (count,)
        yield "ffn_gate_exps.bias", (count, width)
        yield "ffn_up_exps.bias", (count, width)
        yield "ffn_down_exps.bias", (count, self.width)


class Glm(Released):
    """Biases of queries, keys and values, and one of the router."""

    def _layer(self, layer: int) -> Shapes:
        for name, shape in super()._layer(layer):
            yield name.replace("ffn_norm", "post_attention_norm"), shape
        if layer >= self.dense and self.experts:
            yield "exp_probs_b.bias", (self.experts[0],)

    def _facts(self, writer: gguf.GGUFWriter) -> None:
        super()._facts(writer)
        writer.add_expert_shared_count(1)


class Phi(Released):
    """Queries, keys and values in one tensor, and so gate and up."""

    def _layer(self, layer: int) -> Shapes:
        yield "attn_norm.weight", (self.width,)
        both = 2 * self.kv_heads * self.width // self.heads
        yield "attn_qkv.weight", (self.width + both, self.width)
        yield "attn_output.weight", (self.width, self.width)
        yield "ffn_norm.weight", (self.width,)
        yield "ffn_up.weight", (2 * self.feed_forward, self.width)
        yield "ffn_down.weight", (self.width, self.feed_forward)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Latent(Released):
    """Multi-head latent attention of DeepSeek: one vector of `rank` numbers and a part with positions, for all heads."""

    rank: int = 512
    turned: int = 64
    straight: int = 128

    def _heads(self, writer: gguf.GGUFWriter) -> None:
        writer.add_head_count_kv(1)
        writer.add_kv_lora_rank(self.rank)
        writer.add_key_length(self.rank + self.turned)
        writer.add_value_length(self.rank)
        writer.add_key_length_mla(self.straight + self.turned)
        writer.add_value_length_mla(self.straight)
        writer.add_rope_dimension_count(self.turned)

    def _facts(self, writer: gguf.GGUFWriter) -> None:
        super()._facts(writer)
        assert self.experts is not None
        writer.add_expert_shared_count(self.shared // self.experts[2])

    def _attention(self) -> Shapes:
        yield "attn_q.weight", (self.heads * (self.straight + self.turned), self.width)
        yield "attn_kv_a_mqa.weight", (self.rank + self.turned, self.width)
        yield "attn_kv_a_norm.weight", (self.rank,)
        yield "attn_k_b.weight", (self.heads, self.rank, self.straight)
        yield "attn_v_b.weight", (self.heads, self.straight, self.rank)
        yield "attn_output.weight", (self.width, self.heads * self.straight)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Delta(Released):
    """Gated delta net in three of four layers, gated attention in the others. `linear`: heads of keys, heads of values, and the
    width of each."""

    linear: tuple[int, int, int]

    def _heads(self, writer: gguf.GGUFWriter) -> None:
        writer.add_head_count_kv(self.kv_heads)
        writer.add_key_length(self.head)
        writer.add_value_length(self.head)

    def _facts(self, writer: gguf.GGUFWriter) -> None:
        super()._facts(writer)
        keys, values, width = self.linear
        writer.add_full_attention_interval(4)
        writer.add_ssm_conv_kernel(4)
        writer.add_ssm_inner_size(values * width)
        writer.add_ssm_state_size(width)
        writer.add_ssm_time_step_rank(values)
        writer.add_ssm_group_count(keys)
        if self.shared:
            writer.add_expert_shared_feed_forward_length(self.shared)
        if self.architecture.startswith("qwen35"):
            writer.add_rope_dimension_sections([11, 11, 10, 0])
            writer.add_rope_dimension_count(64)

    def _layer(self, layer: int) -> Shapes:
        for name, shape in super()._layer(layer):
            yield name.replace("ffn_norm", "post_attention_norm"), shape
        if self.shared:
            yield "ffn_gate_inp_shexp.weight", (self.width,)

    def _attends(self, layer: int) -> bool:
        return layer % 4 == 3

    def _attention(self) -> Shapes:
        yield "attn_q.weight", (2 * self.heads * self.head, self.width)
        yield "attn_k.weight", (self.kv_heads * self.head, self.width)
        yield "attn_v.weight", (self.kv_heads * self.head, self.width)
        yield "attn_output.weight", (self.width, self.heads * self.head)
        yield "attn_q_norm.weight", (self.head,)
        yield "attn_k_norm.weight", (self.head,)

    def _recurrent(self) -> Shapes:
        keys, values, width = self.linear
        both = (2 * keys + values) * width
        yield "attn_qkv.weight", (both, self.width)
        yield "attn_gate.weight", (values * width, self.width)
        yield "ssm_conv1d.weight", (both, 4)
        yield "ssm_dt.bias", (values,)
        yield "ssm_a", (values,)
        if self.architecture == "qwen3next":
            yield "ssm_ba.weight", (2 * values, self.width)
        else:
            yield "ssm_alpha.weight", (values, self.width)
            yield "ssm_beta.weight", (values, self.width)
        yield "ssm_norm.weight", (width,)
        yield "ssm_out.weight", (self.width, values * width)


def _llama(layers: int, width: int, heads: int, feed_forward: int, vocabulary: int, **more: object) -> Released:
    shape = {"layers": layers, "width": width, "heads": heads, "kv_heads": 8, "feed_forward": feed_forward}
    return Released(architecture="llama", vocabulary=vocabulary, tied=False, **shape, **more)  # type: ignore[arg-type]


def _gpt_oss(layers: int, experts: int) -> GptOss:
    heads = {"heads": 64, "kv_heads": 8, "head": 64}
    return GptOss(
        architecture="gpt-oss",
        layers=layers,
        width=2880,
        vocabulary=201088,
        feed_forward=2880,
        experts=(experts, 4, 2880),
        window=128,
        tied=False,
        type=Q8_0,
        expert_type=MXFP4,
        trained=131072,
        **heads,
    )


RELEASED: Mapping[str, Released] = {
    "SmolLM3 3B": Released(
        architecture="smollm3",
        layers=36,
        width=2048,
        heads=16,
        kv_heads=4,
        feed_forward=11008,
        vocabulary=128256,
        trained=65536,
    ),
    "Gemma 3 4B": Released(
        architecture="gemma3",
        layers=34,
        width=2560,
        heads=8,
        kv_heads=4,
        head=256,
        feed_forward=10240,
        vocabulary=262144,
        window=1024,
        trained=131072,
    ),
    "Llama 3.1 8B": _llama(32, 4096, 32, 14336, 128256, trained=131072),
    "Qwen3 8B": Released(
        architecture="qwen3",
        layers=36,
        width=4096,
        heads=32,
        kv_heads=8,
        head=128,
        feed_forward=12288,
        vocabulary=151936,
        tied=False,
        trained=40960,
    ),
    "Phi-4 14B": Phi(
        architecture="phi3",
        layers=40,
        width=5120,
        heads=40,
        kv_heads=10,
        feed_forward=17920,
        vocabulary=100352,
        tied=False,
        trained=16384,
    ),
    "DeepSeek-V2-Lite": Latent(
        architecture="deepseek2",
        layers=27,
        width=2048,
        heads=16,
        feed_forward=10944,
        experts=(64, 6, 1408),
        dense=1,
        shared=2816,
        vocabulary=102400,
        tied=False,
        trained=163840,
    ),
    "gpt-oss 20B": _gpt_oss(24, 32),
    "Mistral Small 24B": _llama(40, 5120, 32, 32768, 131072, head=128, trained=32768),
    "Gemma 3 27B": Released(
        architecture="gemma3",
        layers=62,
        width=5376,
        heads=32,
        kv_heads=16,
        head=128,
        feed_forward=21504,
        vocabulary=262144,
        window=1024,
        trained=131072,
    ),
    "Qwen3.5 27B": Delta(
        architecture="qwen35",
        layers=64,
        width=5120,
        heads=24,
        kv_heads=4,
        head=256,
        feed_forward=17408,
        linear=(16, 48, 128),
        vocabulary=248320,
        tied=False,
        trained=262144,
    ),
    "Qwen3 30B-A3B": Released(
        architecture="qwen3moe",
        layers=48,
        width=2048,
        heads=32,
        kv_heads=4,
        head=128,
        feed_forward=6144,
        experts=(128, 8, 768),
        vocabulary=151936,
        tied=False,
        trained=40960,
    ),
    "Qwen3.5 35B-A3B": Delta(
        architecture="qwen35moe",
        layers=40,
        width=2048,
        heads=16,
        kv_heads=2,
        head=256,
        experts=(256, 8, 512),
        shared=512,
        linear=(16, 32, 128),
        vocabulary=248320,
        tied=False,
        trained=262144,
    ),
    "Mixtral 8x7B": _llama(32, 4096, 32, 14336, 32000, experts=(8, 2, 14336), trained=32768),
    "Llama 3.3 70B": _llama(80, 8192, 64, 28672, 128256, trained=131072),
    "Qwen3-Next 80B-A3B": Delta(
        architecture="qwen3next",
        layers=48,
        width=2048,
        heads=16,
        kv_heads=2,
        head=256,
        experts=(512, 10, 512),
        shared=512,
        linear=(16, 32, 128),
        vocabulary=151936,
        tied=False,
        trained=262144,
    ),
    "GLM-4.5-Air 106B": Glm(
        architecture="glm4moe",
        layers=46,
        width=4096,
        heads=96,
        kv_heads=8,
        head=128,
        feed_forward=10944,
        experts=(128, 8, 1408),
        dense=1,
        shared=1408,
        vocabulary=151552,
        tied=False,
        trained=131072,
    ),
    "gpt-oss 120B": _gpt_oss(36, 128),
}
"""By name, smallest first."""
