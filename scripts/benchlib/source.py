"""Python files to edit: real-looking, other ones for each seed; and how much of an answer was copied from one."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

NOUNS = (
    *("account", "address", "article", "batch", "booking", "budget", "cart", "catalog", "channel", "client", "comment"),
    *("contract", "course", "customer", "device", "document", "event", "export", "folder", "image", "index", "invoice"),
    *("item", "job", "label", "lesson", "letter", "library", "meeting", "member", "message", "metric", "note", "order"),
    *("page", "payment", "photo", "player", "policy", "product", "profile", "project", "queue", "recipe", "record"),
    *("report", "request", "review", "route", "schedule", "sensor", "session", "shipment", "store", "student", "task"),
    *("team", "ticket", "token", "vehicle", "visit", "worker"),
)
FIELDS = (
    *("name", "title", "owner", "status", "region", "color", "language", "source", "comment", "code", "price", "rate"),
    *("count", "size", "level", "priority", "version", "position", "capacity", "attempts", "weight", "year", "score"),
    *("total", "balance", "discount", "distance", "duration", "ratio", "limit"),
)
PARTS = (
    """
def load_{noun}s(path):
    \"\"\"Load the {noun}s from a file, without those that have no {field}.\"\"\"
    {noun}s = [json.loads(line) for line in path.read_text().splitlines()]
    return [{noun} for {noun} in {noun}s if {noun}["{field}"]]
""",
    """
def save_{noun}s({noun}s, path):
    \"\"\"Write the {noun}s to a file, one on each line.\"\"\"
    with path.open("w") as file:
        for {noun} in {noun}s:
            file.write(json.dumps({noun}) + "\\n")
""",
    """
def check_{noun}({noun}):
    \"\"\"Raise ValueError for a {noun} with a wrong {field}.\"\"\"
    if {noun}["{field}"] not in {noun}["{other}"]:
        raise ValueError("this {noun} has a wrong {field}")
""",
    """
def sort_{noun}s({noun}s):
    \"\"\"Return the {noun}s by {field}, after a check of each {noun}.\"\"\"
    for {noun} in {noun}s:
        check_{noun}({noun})
    return sorted({noun}s, key=lambda {noun}: {noun}["{field}"])
""",
    """
def largest_{noun}({noun}s):
    \"\"\"Return the {noun} with the largest {field}, or None if there are no {noun}s.\"\"\"
    if not {noun}s:
        return None
    return max({noun}s, key=lambda {noun}: {noun}["{field}"])
""",
    """
def group_{noun}s({noun}s):
    \"\"\"Return the {noun}s of each {field} as a dictionary.\"\"\"
    groups = defaultdict(list)
    for {noun} in {noun}s:
        groups[{noun}["{field}"]].append({noun})
    return groups
""",
    """
def describe_{noun}({noun}):
    \"\"\"Return a line of text about the {noun}, for people.\"\"\"
    return f"{noun}: {field} {{{noun}['{field}']}}, {other} {{{noun}['{other}']}}"
""",
)
"""Functions of a service. Nearly every line has the noun, so that a small model that copies knows where it is."""
RUN = 8  # pieces in a row that must stand in the file for them to count as copied
PIECE = re.compile(r"\w+|[^\w\s]|\s+")


def python_file(lines: int, key: str) -> str:
    """A valid module of exactly `lines` lines (20 and more); equal arguments give the same one."""
    chance = random.Random(key)
    nouns = chance.sample(NOUNS, len(NOUNS))
    text = [
        f'"""Keeps the {nouns[-1]}s of the {nouns[-2]} service."""',
        "",
        "import json",
        "from collections import defaultdict",
        "",
    ]
    for noun in nouns:
        part = list(_part(chance, noun))
        if len(text) + len(part) > lines:
            break
        text += part
    constants = [f"{noun.upper()}_LIMIT = {chance.randint(2, 99)}" for noun in nouns]
    return "\n".join([*text, *constants[: lines - len(text)]]) + "\n"


def _part(chance: random.Random, noun: str) -> Iterator[str]:
    for template in chance.sample(PARTS, 3):
        field, other = chance.sample(FIELDS, 2)
        yield from ("", *template.format(noun=noun, field=field, other=other).strip("\n").split("\n"), "")


def copied(answer: str, file: str) -> float:
    """The share of the answer's pieces (words, signs, white space) in a run of RUN and more that stands in `file`."""
    pieces, have = PIECE.findall(answer), PIECE.findall(file)
    known = {tuple(have[at : at + RUN]) for at in range(len(have) - RUN + 1)}
    begins = [at for at in range(len(pieces) - RUN + 1) if tuple(pieces[at : at + RUN]) in known]
    places = {place for at in begins for place in range(at, at + RUN)}
    return len(places) / len(pieces) if pieces else 0.0
