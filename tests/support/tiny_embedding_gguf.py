"""Tiny models that make vectors or scores, with random weights, and the same networks in numpy for comparison.

The numpy side reads the weights back from the file and shares nothing with llama.cpp: what it says is the reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Weights = Mapping[str, Array]
Pooling = gguf.PoolingType

WORDS = ("hello", "world", "cat", "dog", "sun", "moon", "river", "stone", "old", "new", "red", "blue", "a", "b", "c", ",", "?")
ENDS = ("s", "ing", "er")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD, UNK, CLS, SEP, MASK = range(5)
CONTEXT = 64
DECODER_CONTEXT = 1024
BOS, EOS = 1, 2

RERANK = "<Q>{query}\n<D>{document}<A>"
"""The template of the tiny reranking decoder; its markup is control tokens."""
MARKUP = ("<Q>", "<D>", "<A>")

_EMBED, _HEADS, _KV_HEADS, _FEED_FORWARD, _LAYERS, _EPS = 32, 4, 2, 64, 2, 1e-6
_HEAD = 16
_BUCKETS = 8
_BASE = 10_000.0


def token(word: str) -> int:
    """Return the id of a whole word, or of an ending such as ##ing."""
    if word.startswith("##"):
        return len(SPECIAL) + len(WORDS) + ENDS.index(word[2:])
    return len(SPECIAL) + WORDS.index(word)


def bert(
    path: Path,
    pooling: Pooling | None = Pooling.MEAN,
    *,
    classes: int = 1,
    seed: int = 0,
    causal: bool | None = False,
    pieces: bool = True,
) -> Path:
    """Write an encoder; with `Pooling.RANK` it has a classifier of `classes`. `causal` None leaves that key out.

    `pieces`: the vocabulary is WordPiece, else bytes, with two tokens between a pair of texts.
    """
    writer = gguf.GGUFWriter(path, "bert")
    add = _Adding(writer, seed)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(_EMBED)
    writer.add_block_count(_LAYERS)
    writer.add_feed_forward_length(_FEED_FORWARD)
    writer.add_head_count(_HEADS)
    writer.add_layer_norm_eps(_EPS)
    if causal is not None:
        writer.add_causal_attention(causal)
    if pooling is not None:
        writer.add_pooling_type(pooling)
    add.matrix("token_embd.weight", (_word_pieces if pieces else _byte_pairs)(writer), _EMBED, scale=1)
    add.matrix("position_embd.weight", CONTEXT, _EMBED, scale=0.5)
    add.matrix("token_types.weight", 2, _EMBED, scale=0.5)
    add.norm("token_embd_norm")
    for layer in range(_LAYERS):
        name = f"blk.{layer}."
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add.linear(name + part, _EMBED, _EMBED)
        add.norm(name + "attn_output_norm")
        add.linear(name + "ffn_up", _FEED_FORWARD, _EMBED)
        add.linear(name + "ffn_down", _EMBED, _FEED_FORWARD)
        add.norm(name + "layer_output_norm")
    if pooling is Pooling.RANK:
        add.linear("cls", _EMBED, _EMBED)
        add.linear("cls.output", classes, _EMBED)
        if classes > 1:
            writer.add_classifier_output_labels([f"class {i}" for i in range(classes)])
    add.close()
    return path


def qwen3(path: Path, pooling: Pooling = Pooling.LAST, *, seed: int = 0, template: str | None = None) -> Path:
    """Write a decoder that pools the last token; with `Pooling.RANK` it answers yes or no, and has a pair template. `template`
    is its chat template."""
    writer = gguf.GGUFWriter(path, "qwen3")
    add = _Adding(writer, seed)
    writer.add_context_length(DECODER_CONTEXT)
    writer.add_embedding_length(_EMBED)
    writer.add_block_count(_LAYERS)
    writer.add_feed_forward_length(_FEED_FORWARD)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_KV_HEADS)
    writer.add_key_length(_HEAD)
    writer.add_value_length(_HEAD)
    writer.add_rope_freq_base(_BASE)
    writer.add_layer_norm_rms_eps(_EPS)
    writer.add_pooling_type(pooling)
    n_vocab = _bytes(writer)
    add.matrix("token_embd.weight", n_vocab, _EMBED, scale=1)
    add.matrix("output.weight", n_vocab, _EMBED)
    add.scale("output_norm.weight", _EMBED)
    for layer in range(_LAYERS):
        name = f"blk.{layer}."
        add.scale(name + "attn_norm.weight", _EMBED)
        add.matrix(name + "attn_q.weight", _HEADS * _HEAD, _EMBED)
        add.matrix(name + "attn_k.weight", _KV_HEADS * _HEAD, _EMBED)
        add.matrix(name + "attn_v.weight", _KV_HEADS * _HEAD, _EMBED)
        add.scale(name + "attn_q_norm.weight", _HEAD)
        add.scale(name + "attn_k_norm.weight", _HEAD)
        add.matrix(name + "attn_output.weight", _EMBED, _HEADS * _HEAD)
        add.scale(name + "ffn_norm.weight", _EMBED)
        for part in ("ffn_gate", "ffn_up"):
            add.matrix(f"{name}{part}.weight", _FEED_FORWARD, _EMBED)
        add.matrix(name + "ffn_down.weight", _EMBED, _FEED_FORWARD)
    if pooling is Pooling.RANK:
        add.matrix("cls.output.weight", 2, _EMBED)
        writer.add_classifier_output_labels(["yes", "no"])
        writer.add_chat_template([{"name": "rerank", "template": RERANK}])
    elif template:
        writer.add_chat_template(template)
    add.close()
    return path


def t5encoder(path: Path, *, seed: int = 0) -> Path:
    """Write the encoder of a translation model: it has relative positions only, and no pooling setting."""
    writer = gguf.GGUFWriter(path, "t5encoder")
    add = _Adding(writer, seed)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(_EMBED)
    writer.add_block_count(_LAYERS)
    writer.add_feed_forward_length(_FEED_FORWARD)
    writer.add_head_count(_HEADS)
    writer.add_key_length(_HEAD)
    writer.add_value_length(_HEAD)
    writer.add_layer_norm_rms_eps(_EPS)
    writer.add_relative_attn_buckets_count(_BUCKETS)
    add.matrix("token_embd.weight", _bytes(writer), _EMBED, scale=1)
    add.scale("enc.output_norm.weight", _EMBED)
    add.matrix("enc.blk.0.attn_rel_b.weight", _BUCKETS, _HEADS, scale=1)
    for layer in range(_LAYERS):
        name = f"enc.blk.{layer}."
        add.scale(name + "attn_norm.weight", _EMBED)
        for part in "qkv":
            add.matrix(f"{name}attn_{part}.weight", _HEADS * _HEAD, _EMBED, scale=0.15)
        add.matrix(name + "attn_o.weight", _EMBED, _HEADS * _HEAD)
        add.scale(name + "ffn_norm.weight", _EMBED)
        for part in ("ffn_gate", "ffn_up"):
            add.matrix(f"{name}{part}.weight", _FEED_FORWARD, _EMBED)
        add.matrix(name + "ffn_down.weight", _EMBED, _FEED_FORWARD)
    add.close()
    return path


def weights(path: Path) -> Weights:
    return {tensor.name: tensor.data.astype(np.float64) for tensor in gguf.GGUFReader(path).tensors}


def bert_states(w: Weights, tokens: Sequence[int]) -> Array:
    """Return the encoder's output for each token."""
    x = w["token_embd.weight"][list(tokens)] + w["position_embd.weight"][: len(tokens)] + w["token_types.weight"][0]
    x = _layer_norm(w, "token_embd_norm", x)
    for layer in range(_LAYERS):
        name = f"blk.{layer}."
        q, k, v = (_split(_linear(w, name + part, x), _HEADS) for part in ("attn_q", "attn_k", "attn_v"))
        seen = _softmax(q @ k.transpose(0, 2, 1) / np.sqrt(_EMBED // _HEADS))
        x = _layer_norm(w, name + "attn_output_norm", x + _linear(w, name + "attn_output", _join(seen @ v)))
        inner = _gelu(_linear(w, name + "ffn_up", x))
        x = _layer_norm(w, name + "layer_output_norm", x + _linear(w, name + "ffn_down", inner))
    return x


def bert_vector(w: Weights, tokens: Sequence[int], pooling: Pooling = Pooling.MEAN) -> Array:
    states = bert_states(w, tokens)
    return unit(states.mean(0) if pooling is Pooling.MEAN else states[-1 if pooling is Pooling.LAST else 0])


def bert_score(w: Weights, tokens: Sequence[int]) -> float:
    """Return the score of the classifier on the first token."""
    pooled = np.tanh(_linear(w, "cls", bert_states(w, tokens)[0]))
    return float(1 / (1 + np.exp(-_linear(w, "cls.output", pooled)[0])))


def qwen3_state(w: Weights, tokens: Sequence[int]) -> Array:
    """Return the decoder's output for the last token."""
    x = w["token_embd.weight"][list(tokens)]
    ahead = np.triu(np.full((len(tokens), len(tokens)), -np.inf), 1)
    for layer in range(_LAYERS):
        name = f"blk.{layer}."
        h = _rms(w, name + "attn_norm", x)
        q = _rope(_rms(w, name + "attn_q_norm", _split(h @ w[name + "attn_q.weight"].T, _HEADS)))
        k = _rope(_rms(w, name + "attn_k_norm", _split(h @ w[name + "attn_k.weight"].T, _KV_HEADS)))
        v = _split(h @ w[name + "attn_v.weight"].T, _KV_HEADS)
        k, v = (np.repeat(each, _HEADS // _KV_HEADS, 0) for each in (k, v))
        seen = _softmax(q @ k.transpose(0, 2, 1) / np.sqrt(_HEAD) + ahead)
        x = x + _join(seen @ v) @ w[name + "attn_output.weight"].T
        h = _rms(w, name + "ffn_norm", x)
        gate = h @ w[name + "ffn_gate.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ w[name + "ffn_up.weight"].T)) @ w[name + "ffn_down.weight"].T
    return _rms(w, "output_norm", x)[-1]


def qwen3_vector(w: Weights, tokens: Sequence[int]) -> Array:
    return unit(qwen3_state(w, tokens))


def qwen3_score(w: Weights, tokens: Sequence[int]) -> float:
    """Return the probability of yes."""
    return float(_softmax(w["cls.output.weight"] @ qwen3_state(w, tokens))[0])


def t5_vector(w: Weights, tokens: Sequence[int]) -> Array:
    x = w["token_embd.weight"][list(tokens)]
    places = np.arange(len(tokens))
    bias = w["enc.blk.0.attn_rel_b.weight"][_bucket(places[None, :] - places[:, None])].transpose(2, 0, 1)
    for layer in range(_LAYERS):
        name = f"enc.blk.{layer}."
        h = _rms(w, name + "attn_norm", x)
        q, k, v = (_split(h @ w[f"{name}attn_{part}.weight"].T, _HEADS) for part in "qkv")
        x = x + _join(_softmax(q @ k.transpose(0, 2, 1) + bias) @ v) @ w[name + "attn_o.weight"].T
        h = _rms(w, name + "ffn_norm", x)
        inner = _gelu(h @ w[name + "ffn_gate.weight"].T) * (h @ w[name + "ffn_up.weight"].T)
        x = x + inner @ w[name + "ffn_down.weight"].T
    return unit(_rms(w, "enc.output_norm", x).mean(0))


def unit(vector: Array) -> Array:
    return vector / np.linalg.norm(vector)


def _linear(w: Weights, name: str, x: Array) -> Array:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def _layer_norm(w: Weights, name: str, x: Array) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt(centred.var(-1, keepdims=True) + _EPS) * w[f"{name}.weight"] + w[f"{name}.bias"]


def _rms(w: Weights, name: str, x: Array) -> Array:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + _EPS) * w[f"{name}.weight"]


def _softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _gelu(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def _split(x: Array, heads: int) -> Array:
    """Reshape (tokens, heads * width) to (heads, tokens, width)."""
    return x.reshape(len(x), heads, -1).transpose(1, 0, 2)


def _join(x: Array) -> Array:
    return x.transpose(1, 0, 2).reshape(x.shape[1], -1)


def _rope(x: Array) -> Array:
    """Rotate the first half of each head against its second half, by an angle that grows with the position."""
    half = x.shape[-1] // 2
    angle = np.arange(x.shape[1])[:, None] * _BASE ** (-np.arange(half) / half)
    first, second = x[..., :half], x[..., half:]
    return np.concatenate([first * np.cos(angle) - second * np.sin(angle), second * np.cos(angle) + first * np.sin(angle)], -1)


def _bucket(distance: Array) -> npt.NDArray[np.int64]:
    """Return the bucket of each distance: near ones have their own, far ones share them, separately ahead and behind."""
    half, exact = _BUCKETS // 2, _BUCKETS // 4
    far = exact + np.log(np.maximum(np.abs(distance), 1) / exact) / np.log(128 / exact) * (half - exact)
    near = np.where(np.abs(distance) < exact, np.abs(distance), np.minimum(far, half - 1))
    return near.astype(np.int64) + half * (distance > 0)


def _word_pieces(writer: gguf.GGUFWriter) -> int:
    """Return the number of tokens."""
    types = gguf.TokenType
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([*SPECIAL, *(f"▁{word}" for word in WORDS), *ENDS])
    writer.add_token_types([*[types.CONTROL] * len(SPECIAL), *[types.NORMAL] * (len(WORDS) + len(ENDS))])
    writer.add_token_type_count(2)
    writer.add_bos_token_id(CLS)
    writer.add_sep_token_id(SEP)
    writer.add_unk_token_id(UNK)
    writer.add_pad_token_id(PAD)
    writer.add_mask_token_id(MASK)
    return len(SPECIAL) + len(WORDS) + len(ENDS)


def _byte_pairs(writer: gguf.GGUFWriter) -> int:
    """Write a vocabulary as `_bytes`, for texts and pairs with opening and closing tokens."""
    found = _bytes(writer, opened=True)
    writer.add_sep_token_id(EOS)
    writer.add_add_sep_token(True)
    writer.add_token_type_count(2)
    return found


def _bytes(writer: gguf.GGUFWriter, opened: bool = False) -> int:
    """Write a SentencePiece vocabulary of bytes and markup, so that any text has tokens. Return the number of tokens."""
    types = gguf.TokenType
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *MARKUP]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([types.UNKNOWN, *[types.CONTROL] * 2, *[types.BYTE] * 256, *[types.CONTROL] * len(MARKUP)])
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(opened)
    writer.add_add_eos_token(True)
    writer.add_add_space_prefix(False)
    return len(tokens)


class _Adding:
    """Puts random tensors into a file."""

    def __init__(self, writer: gguf.GGUFWriter, seed: int) -> None:
        self._writer = writer
        self._random = np.random.default_rng(seed)

    def matrix(self, name: str, rows: int, columns: int, scale: float | None = None) -> None:
        deviation = 1.5 * columns**-0.5 if scale is None else scale
        self._add(name, self._random.normal(0, deviation, (rows, columns)))

    def linear(self, name: str, rows: int, columns: int) -> None:
        self.matrix(f"{name}.weight", rows, columns)
        self._add(f"{name}.bias", self._random.normal(0, 0.3, rows))

    def norm(self, name: str) -> None:
        self.scale(f"{name}.weight", _EMBED)
        self._add(f"{name}.bias", self._random.normal(0, 0.3, _EMBED))

    def scale(self, name: str, size: int) -> None:
        self._add(name, self._random.uniform(0.5, 1.5, size))

    def close(self) -> None:
        self._writer.write_header_to_file()
        self._writer.write_kv_data_to_file()
        self._writer.write_tensors_to_file()
        self._writer.close()

    def _add(self, name: str, values: Array) -> None:
        self._writer.add_tensor(name, values.astype(np.float32))
