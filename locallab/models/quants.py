"""The choice of a repository's files when only a quantization is named, or nothing. Pure."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from locallab.models.spec import shards, unsharded

ORDER = (
    *("Q4_K_M", "Q4_0", "Q8_0", "Q4_K_S", "Q4_1", "Q5_K_M", "Q5_K_S", "Q5_0", "Q5_1", "Q6_K", "IQ4_XS", "IQ4_NL", "MXFP4"),
    *("Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K", "BF16", "F16", "F32"),
)
"""Preference when nothing is named: the first of these that a repository has."""

PROJECTORS = ("F16", "BF16", "Q8_0", "F32")
"""Preference among the projectors of a repository: a coarser one saves little, a finer one shows nothing more."""

_LABEL = r"(?:UD-)?(?:I?Q\d|TQ\d|MXFP4|BF16|FP16|F16|FP32|F32)(?:_[A-Z0-9]+)*"
_IN_NAME = re.compile(rf"(?:^|[-._])({_LABEL})(?=[-.]|$)", re.IGNORECASE)
_NO_WEIGHTS = re.compile(r"(?:^|[-._])(?:mmproj|imatrix)(?:[-._]|$)", re.IGNORECASE)
_PROJECTOR = re.compile(r".*mmproj.*\.gguf", re.IGNORECASE)
_OTHER_NAMES = {"FP16": "F16", "FP32": "F32"}


class NoChoice(Exception):
    """No file matches, or several do. The message is a predicate of the repository: "has no ..."."""


@dataclasses.dataclass(frozen=True)
class Offer:
    """A model in a repository: its quantization ("" if its name has none) and its files, several if it is split."""

    label: str
    files: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.files[0]


def label(name: str) -> str:
    """Return the quantization in a file's name, else in its folder's name; "" for none."""
    path = PurePosixPath(unsharded(name))
    for text in (path.stem, path.parent.name):
        labels = [found[1].upper() for found in _IN_NAME.finditer(text)]
        if labels:
            return _OTHER_NAMES.get(labels[-1], labels[-1])
    return ""


def offers(names: Iterable[str]) -> list[Offer]:
    """Return the models among the files of a repository, sorted by name, without split ones that lack a file."""
    present = {name for name in names if name.lower().endswith(".gguf") and not _NO_WEIGHTS.search(PurePosixPath(name).name)}
    families = {shards(name) for name in present}
    return sorted((Offer(label(files[0]), files) for files in families if present.issuperset(files)), key=lambda o: o.files)


def is_projector(name: str) -> bool:
    """Return whether the name of a file says that it is a projector."""
    return _PROJECTOR.fullmatch(name) is not None


def projector(names: Iterable[str]) -> tuple[str, ...]:
    """Return the projector among the files of a repository, () if there is none: of the top folder before a subfolder, then the
    first in PROJECTORS."""

    def rank(name: str) -> tuple[int, int, str]:
        found = label(name)
        return name.count("/"), PROJECTORS.index(found) if found in PROJECTORS else len(PROJECTORS), name

    found = [name for name in names if is_projector(PurePosixPath(name).name)]
    return (min(found, key=rank),) if found else ()


def choose(names: Iterable[str], wanted: str | None = None) -> tuple[str, ...]:
    """Return the files of the quantization `wanted`, or of the first one in ORDER that the repository has.

    Raises NoChoice, listing the candidates, if none or several match.
    """
    found = offers(names)
    if not found:
        raise NoChoice("holds no complete .gguf model")
    labels = ORDER if wanted is None else (_OTHER_NAMES.get(wanted.upper(), wanted.upper()),)
    for label in (*labels, *(f"UD-{label}" for label in labels)):
        if matching := [offer for offer in found if offer.label == label]:
            # A whole file before a split one, the top folder before a subfolder.
            rank = min((len(offer.files) > 1, offer.name.count("/")) for offer in matching)
            best = [offer for offer in matching if (len(offer.files) > 1, offer.name.count("/")) == rank]
            if len(best) > 1:
                raise NoChoice(f"has several files of {label}, name one: {', '.join(offer.name for offer in best)}")
            return best[0].files
    names_found = ", ".join(dict.fromkeys(offer.label or offer.name for offer in found))
    if wanted is not None:
        raise NoChoice(f"has no quantization {wanted}; it has {names_found}")
    if len(found) > 1:
        raise NoChoice(f"has several models, name one: {names_found}")
    return found[0].files
