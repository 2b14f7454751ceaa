"""Fill in the middle: what stands before and after a gap, as the tokens of a prompt. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from locallab.engine.request import FimTokens

REPOSITORY = "repository"
"""What the repository and the file at hand are called: requests do not say, models want some name."""
FILE = "file"


def infill(
    fim: FimTokens, tokenize: Callable[[str], list[int]], prefix: str, suffix: str, extra: Iterable[tuple[str, str]] = ()
) -> list[int]:
    """The prompt whose answer belongs between `prefix` and `suffix`.

    `tokenize` takes every text as it is: no opening token, no markup. `extra` are other files, each a name and its text, the
    most important last. A model with tokens for a repository gets them as such, any other gets their texts first.
    """
    files = list(extra)
    prompt = [] if fim.bos is None else [fim.bos]
    if files and fim.repo is not None and fim.separator is not None:
        prompt += [fim.repo, *tokenize(f"{REPOSITORY}\n")]
        for name, text in files:
            prompt += [fim.separator, *tokenize(f"{name}\n{_ended(text)}")]
        prompt += [fim.separator, *tokenize(f"{FILE}\n")]
    else:
        for name, text in files:
            prompt += tokenize(f"{name}\n{_ended(text)}\n")
    return [*prompt, fim.prefix, *tokenize(prefix), fim.suffix, *tokenize(suffix), fim.middle]


def _ended(text: str) -> str:
    return text if text.endswith("\n") else f"{text}\n"
