"""Tiny vocabularies of every kind that llama.cpp tokenizes with, as GGUF files without weights."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import gguf

Kind = Literal["spm", "bpe", "wpm", "ugm", "rwkv", "plamo2"]
KINDS: tuple[Kind, ...] = ("spm", "bpe", "wpm", "ugm", "rwkv", "plamo2")

SPECIALS = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<mask>", "<|endoftext|>")
USER_DEFINED = ("\n\n\n", "#=#")

RAW = ("gemma4", "granite-embed-multi-311m", "sarvam-moe", "whitespace")
"""Pre-tokenizers of BPE vocabularies that spell texts as they are, not byte by byte."""

_MODELS = {"spm": "llama", "bpe": "gpt2", "wpm": "bert", "ugm": "t5", "rwkv": "rwkv", "plamo2": "plamo2"}
_WORDS = (
    *(" the", " and", "ing", "th", "he", " t", " a", "in", "er", "an", "re", "on", "at", "en", "nd", "ti", "es", "or", "te"),
    *("of", "ab", "abab", "st", "ar", "12", "123", "  ", "    ", "\n\n", "--", "a b", ".\n", "汉字", "字\uff0c", "e'", "'s"),
    *(" b", "aa", "aaaa", "aaaaaaaa", "=", '{"', '":'),
)
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def write(path: Path, kind: Kind, pre: str = "default", name: str = "tiny", **facts: bool) -> Path:
    """Write a vocabulary, and return its path. `pre` names a BPE vocabulary's pre-tokenizer; `facts` are flags below
    `tokenizer.ggml`, such as `add_space_prefix`."""
    writer = gguf.GGUFWriter(path, "llama")
    for length in ("context_length", "embedding_length", "block_count", "feed_forward_length", "head_count"):
        getattr(writer, f"add_{length}")(64)
    writer.add_name(name)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model(pre if pre in ("gemma4", "whitespace") else _MODELS[kind])
    if kind == "bpe":
        writer.add_tokenizer_pre(pre)
    tokens = _tokens(kind, raw=pre in RAW)
    writer.add_token_list([text.encode() for text, _, _ in tokens])
    writer.add_token_scores([score for _, score, _ in tokens])
    writer.add_token_types([type_ for _, _, type_ in tokens])
    if kind == "bpe":
        writer.add_token_merges(_merges([text for text, _, type_ in tokens if type_ == gguf.TokenType.NORMAL]))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    if kind == "wpm":
        writer.add_sep_token_id(2)
    for name, value in facts.items():
        writer.add_bool(f"tokenizer.ggml.{name}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _tokens(kind: Kind, *, raw: bool) -> list[tuple[str, float, gguf.TokenType]]:
    types = gguf.TokenType
    found = [(text, 0.0, types.UNKNOWN if text == "<unk>" else types.CONTROL) for text in SPECIALS]
    found += [(text, 0.0, types.USER_DEFINED) for text in USER_DEFINED]
    letters = [chr(c) for c in range(32, 127)] + list("\n\t汉字\uff0c。éΩ")
    texts = [_spelled(kind, text, raw=raw) for text in (*letters, *_WORDS)]
    if kind == "bpe" and not raw:
        texts = [*byte_letters(), *texts]
    elif kind == "rwkv":
        texts = [*(f"\\x{byte:02x}" for byte in range(256)), *texts]
    elif kind != "wpm":
        found += [(text, 0.0, types.BYTE) for text in _BYTES]
    seen = {text for text, _, _ in found}
    for index, text in enumerate(dict.fromkeys(texts)):
        if text not in seen:
            found.append((text, -1.0 - (index * 7 % 40) / 8, types.NORMAL))
    return found


def byte_letters() -> list[str]:
    """Return the characters that stand for the 256 bytes in a byte-level BPE vocabulary."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    table = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(rest)}
    return [table[byte] for byte in range(256)]


def _spelled(kind: Kind, text: str, *, raw: bool) -> str:
    if kind == "bpe" and not raw:
        table = byte_letters()
        return "".join(table[byte] for byte in text.encode())
    if kind == "rwkv":
        return text.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t")
    if kind == "wpm":
        return "▁" + text.strip() if text.startswith(" ") and text.strip() else text
    return text if kind == "plamo2" else text.replace(" ", "▁")


def _merges(texts: list[str]) -> list[str]:
    """Return pairs of tokens that make a third one, in an order that is not that of their lengths."""
    known, found = set(texts), []
    for text in texts:
        found += [f"{text[:i]} {text[i:]}" for i in range(1, len(text)) if text[:i] in known and text[i:] in known]
    return sorted(found, key=lambda merge: (hash_of(merge), merge))


def hash_of(text: str) -> int:
    return sum(ord(char) * (31**i % 97) for i, char in enumerate(text)) % 101
