"""The sampler of one answer: what may not come next, a llama.cpp sampler chain, and a shortcut for plain greedy requests."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import llama_cpp
import numpy as np
import numpy.typing as npt

from locallab.engine import sampler_chain
from locallab.engine.context import Context
from locallab.engine.llama import Model
from locallab.engine.request import SamplingParams
from locallab.engine.token_rules import TokenRules

_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
"""llama_token_data."""


class Sampler:
    """Samples the tokens of one request. Owned by the engine's thread; `close` frees the native chain.

    First `forbid`, then `draw`. The order of a chain is that of the request, behind the bias. A request that is greedy and
    changes no logit needs no chain: its token is the largest logit.
    """

    def __init__(self, params: SamplingParams, model: Model, length: int, rules: TokenRules) -> None:
        """`length` is the most tokens that prompt and answer may have. Raises MemoryError."""
        ends = frozenset(model.end_tokens)
        self._banned = rules.banned | (ends if params.ignore_eos else frozenset())
        self._early = (ends | frozenset(params.stop_token_ids)) - self._banned if params.min_tokens else frozenset()
        self._min_tokens = params.min_tokens
        self._bad_words = rules.bad_words
        self._outside = _outside(params.allowed_token_ids, model.n_vocab)
        self._said: list[int] = []
        self._window = length if params.penalty_window < 0 else min(length, params.penalty_window)
        self._penalized = sampler_chain.penalizes(params)
        self._dry = rules.dry is not None
        is_plain = sampler_chain.is_greedy(params) and not (
            rules.bias or self._penalized or self._dry or sampler_chain.excludes_top(params)
        )
        self._greedy = sampler_chain.is_greedy(params)
        self._chain = None if is_plain else sampler_chain.build(params, model.n_vocab, rules.bias, self._window, rules.dry)

    def read(self, prompt: Sequence[int]) -> None:
        """Show the prompt to the penalties (llama_sampler_accept)."""
        if self._dry:
            self._show(prompt)
        elif self._penalized:
            self._show(prompt[-self._window :])

    def accept(self, tokens: Sequence[int]) -> None:
        """Take tokens of the answer that were not sampled, but forced."""
        self._said += tokens
        if self._dry or self._penalized:
            self._show(tokens)

    def forbid(self, logits: npt.NDArray[np.float32]) -> bool:
        """Set the logits of tokens that may not come next to -inf (mutates `logits`). Return whether there may be such."""
        if self._outside is not None:
            np.copyto(logits, -np.inf, where=self._outside)
        tokens = [*self._banned, *self._ending_words()]
        if len(self._said) < self._min_tokens:
            tokens += self._early
        if tokens:
            logits[tokens] = -np.inf
        return bool(tokens) or self._outside is not None

    def draw(self, context: Context, logits: npt.NDArray[np.float32], index: int) -> int:
        """Sample from `logits`, the context's own of entry `index` of the last batch, and accept the token.

        llama_sampler_sample, or the largest logit. A forbidden token is never sampled: should a chain have removed all
        others, the likeliest of these is taken.
        """
        if self._chain is None:
            token = int(logits.argmax())
        else:
            token = int(llama_cpp.llama_sampler_sample(self._chain, context.handle, index))
            if logits[token] == -np.inf:
                token = int(logits.argmax())
        self._said.append(token)
        return token

    def draw_shown(self, logits: npt.NDArray[np.float32]) -> tuple[int, dict[int, float]]:
        """As `draw`, with the log probabilities of all tokens that it may have drawn; of a greedy choice, only itself."""
        candidates = np.empty(len(logits), _CANDIDATE)
        candidates["id"], candidates["logit"], candidates["p"] = np.arange(len(logits)), logits, 0.0
        if self._chain is None:
            token = int(logits.argmax())
            self._said.append(token)
            return token, {token: 0.0}
        array = llama_cpp.llama_token_data_array(
            ctypes.cast(candidates.ctypes.data, llama_cpp.llama_token_data_p), len(candidates), -1, False
        )
        llama_cpp.llama_sampler_apply(self._chain, ctypes.byref(array))
        first = (ctypes.addressof(array.data.contents) - candidates.ctypes.data) // candidates.itemsize  # XTC drops the first
        left = candidates[first : first + array.size]
        token = int(left[array.selected]["id"])
        certain = self._greedy
        if logits[token] == -np.inf:
            token, certain = int(logits.argmax()), True
        llama_cpp.llama_sampler_accept(self._chain, token)
        self._said.append(token)
        return token, {token: 0.0} if certain else _logprobs(left[left["logit"] > -np.inf])

    def close(self) -> None:
        if self._chain is not None:
            llama_cpp.llama_sampler_free(self._chain)
            self._chain = None

    def _show(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            llama_cpp.llama_sampler_accept(self._chain, token)

    def _ending_words(self) -> list[int]:
        """Return the last tokens of the bad words of which the answer ends with all the others."""
        return [word[-1] for word in self._bad_words if len(word) == 1 or tuple(self._said[1 - len(word) :]) == word[:-1]]


def _logprobs(candidates: npt.NDArray[np.void]) -> dict[int, float]:
    logits = candidates["logit"].astype(np.float64)
    logprobs = logits - logits.max()
    return dict(zip(candidates["id"].tolist(), (logprobs - np.log(np.exp(logprobs).sum())).tolist(), strict=True))


def _outside(allowed: Sequence[int], n_vocab: int) -> npt.NDArray[np.bool_] | None:
    if not allowed:
        return None
    outside = np.ones(n_vocab, np.bool_)
    outside[list(allowed)] = False
    return outside
