"""Which files of a repository to take when only a quantization is named, or nothing at all. Pure."""

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
"""What is taken when nothing is named: the first of these that a repository has."""

_LABEL = r"(?:UD-)?(?:I?Q\d|TQ\d|MXFP4|BF16|FP16|F16|FP32|F32)(?:_[A-Z0-9]+)*"
_IN_NAME = re.compile(rf"(?:^|[-._])({_LABEL})(?=[-.]|$)", re.IGNORECASE)
_NO_WEIGHTS = re.compile(r"(?:^|[-._])(?:mmproj|imatrix)(?:[-._]|$)", re.IGNORECASE)
_OTHER_NAMES = {"FP16": "F16", "FP32": "F32"}


class NoChoice(Exception):
    """Nothing fits, or more than one file does; the message begins with what the repository does: "has no ..."."""


@dataclasses.dataclass(frozen=True)
class Offer:
    """A model that a repository holds: its quantization ("" if its name says none) and its files, several if it is split."""

    label: str
    files: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.files[0]


def label(name: str) -> str:
    """The quantization that a file's name, or else the name of its folder, says; "" for none."""
    path = PurePosixPath(unsharded(name))
    for text in (path.stem, path.parent.name):
        said = [found[1].upper() for found in _IN_NAME.finditer(text)]
        if said:
            return _OTHER_NAMES.get(said[-1], said[-1])
    return ""


def offers(names: Iterable[str]) -> list[Offer]:
    """The models among the files of a repository, by name; a split one that lacks a file is not among them."""
    present = {name for name in names if name.lower().endswith(".gguf") and not _NO_WEIGHTS.search(PurePosixPath(name).name)}
    families = {shards(name) for name in present}
    return sorted((Offer(label(files[0]), files) for files in families if present.issuperset(files)), key=lambda o: o.files)


def choose(names: Iterable[str], wanted: str | None = None) -> tuple[str, ...]:
    """The files to fetch for the quantization `wanted`, or for the first of ORDER that there is.

    Raises NoChoice that names what there is, if nothing fits or more than one does.
    """
    found = offers(names)
    if not found:
        raise NoChoice("holds no complete .gguf model")
    if wanted is None:
        return _usual(found).files
    label = _OTHER_NAMES.get(wanted.upper(), wanted.upper())
    fitting = _labelled(found, label) or _labelled(found, f"UD-{label}")
    if not fitting:
        raise NoChoice(f"has no quantization {wanted}; it has {_list(found)}")
    return _only(fitting).files


def _usual(found: list[Offer]) -> Offer:
    for prefix in ("", "UD-"):
        for label in ORDER:
            if fitting := _labelled(found, prefix + label):
                return _only(fitting)
    if len(found) == 1:
        return found[0]
    raise NoChoice(f"has several models, name one: {_list(found)}")


def _labelled(found: list[Offer], label: str) -> list[Offer]:
    return [offer for offer in found if offer.label == label]


def _only(fitting: list[Offer]) -> Offer:
    """Of the same quantization, whole rather than split, at the top rather than in a folder."""

    def rank(offer: Offer) -> tuple[bool, int]:
        return len(offer.files) > 1, offer.name.count("/")

    best = [offer for offer in fitting if rank(offer) == min(map(rank, fitting))]
    if len(best) > 1:
        raise NoChoice(f"has several files of {best[0].label}, name one: {', '.join(offer.name for offer in best)}")
    return best[0]


def _list(found: list[Offer]) -> str:
    return ", ".join(dict.fromkeys(offer.label or offer.name for offer in found))
