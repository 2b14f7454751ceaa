"""Prompts for fill-in-the-middle: the text before and after a gap, as tokens. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from locallab.engine.request import FimTokens

REPOSITORY = "repository"
"""Names of the repository and of the current file: requests carry none, models expect some."""
FILE = "file"


def infill(
    fim: FimTokens, tokenize: Callable[[str], list[int]], prefix: str, suffix: str, extra: Iterable[tuple[str, str]] = ()
) -> list[int]:
    """Return the prompt whose answer belongs between `prefix` and `suffix`.

    `tokenize` adds no opening token and parses no markup. `extra` are other files as (name, text), the most important last: a
    model with repository tokens gets them as files of one repository, any other as plain text ahead of the prefix.
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
