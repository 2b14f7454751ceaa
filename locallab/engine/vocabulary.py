"""The vocabulary of a model's file without its weights, which takes a fraction of a second whatever the model's size."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from locallab.engine import llama
from locallab.engine.tokenizer import Tokenizer
from locallab.errors import InvalidField
from locallab.media.attachment import Attachment


@dataclasses.dataclass(frozen=True, slots=True)
class VocabularyInfo:
    """The special tokens, by their texts, the default chat template, None for a file without one, and those with a name."""

    bos: str
    eos: str
    control_tokens: Mapping[str, int]
    chat_template: str | None
    named_templates: Mapping[str, str]


class Vocabulary:
    """Tokenizes as an engine of the same file does, and computes nothing."""

    def __init__(self, path: Path) -> None:
        """Load the vocabulary. Raises ModelLoadError."""
        self._model = model = llama.Model(path, 0, vocab_only=True)
        self.info = VocabularyInfo(model.bos, model.eos, model.control_tokens, model.chat_template, model.named_templates)
        self.n_vocab = model.n_vocab
        self._tokenizer = Tokenizer(model)

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool, media: Sequence[Attachment] = ()) -> list[int]:
        """Return the token ids of `text`, as `Engine.tokenize` of a model that takes only text."""
        if media:
            raise InvalidField(media[0].field, "a vocabulary has no tokens for pictures and sounds")
        return self._tokenizer.tokenize(text, add_special=add_special, parse_special=parse_special)

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Return the text of `tokens`, markup included; invalid UTF-8 becomes U+FFFD."""
        return self._tokenizer.detokenize(tokens)

    def close(self) -> None:
        """Free the vocabulary."""
        self._tokenizer.close()
        self._model.close()
