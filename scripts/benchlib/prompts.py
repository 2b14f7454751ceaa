"""Prompts: what each workload sends, the same for every server in a round and new in the next round."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, replace
from typing import Any

from benchlib.pictures import data_url
from benchlib.source import python_file
from locallab.load.request import Plan, Request

# Each is one token of SmolLM2 (and of most English vocabularies) with a space before it.
_WORDS = """
time year people way day man thing woman life child world school state family student group country problem hand part
place case week company system program question work government number night point home water room mother area money
story fact month lot right study book eye job word business issue side kind head house service friend father power
hour game line end member law car city community name president team minute idea kid body information back parent face
others level office door health person art war history party result change morning reason research girl guy moment air
teacher force education foot boy age policy music market sense road river tree bird fish horse dog cat stone bridge
garden window table chair paper letter picture song dance dream summer winter spring autumn rain snow wind sun moon
star sky sea island mountain forest field farm village street station train ship boat plane engine wheel metal gold
silver iron glass wood fire smoke cloud storm shadow light color red blue green white black yellow brown small large
"""
WORDS = _WORDS.split()
TASK = "\nTell a long story with all of these words."
TASK_WORDS = len(TASK.split())
JSON_TASK = "\nMake up {people} people with these words."
PEOPLE = 6
EDIT_TASK = "Repeat this file, with the function `{name}` renamed to `new_{name}`.\n\n```python\n{file}```"
EDIT_BEGUN = 20  # lines of the answer that are there already, ...
EDIT_EXAMPLE = 40  # ... after an example with so many lines: a small model then copies most of a file


def json_format(people: int) -> dict[str, Any]:
    """The field that holds an answer to a schema for so many people; much of the answer follows from the schema alone."""
    person = {
        "first_name": {"type": "string", "maxLength": 12},
        "favourite_colour": {"enum": ["red", "green", "blue", "yellow"]},
        "years_of_experience": {"type": "integer", "minimum": 0, "maximum": 40},
        "is_available_now": {"type": "boolean"},
    }
    each = {"type": "object", "properties": person, "required": [*person], "additionalProperties": False}
    array = {"type": "array", "minItems": people, "maxItems": people, "items": each}
    schema = {"type": "object", "properties": {"people": array}, "required": ["people"], "additionalProperties": False}
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "people", "schema": schema}}}


SPARE_TOKENS = 128  # what the chat template and its own system prompt may add


@dataclass(frozen=True, slots=True)
class Prompt:
    """One chat: its texts, the length of its answer, and how many answers (`n`) it asks for.

    `history`: what user and assistant said before, alternating. `people`: the answer is JSON about so many, with which it ends.
    `beginning`: the answer goes on from it, and its text is kept. `picture`: a data: URL, shown before the user's text.
    """

    system: str
    user: str
    max_tokens: int
    people: int = 0
    n: int = 1
    history: tuple[str, ...] = ()
    beginning: str = ""
    picture: str = ""

    def request(self) -> Request:
        """What the load generator sends."""
        said = [("user", "assistant")[place % 2] for place in range(len(self.history))]
        messages = [("system", self.system), *zip(said, self.history, strict=True), ("user", self.user)]
        messages += [("assistant", self.beginning)] if self.beginning else []
        shown: list[dict[str, Any]] = [{"role": role, "content": text} for role, text in messages if text]
        if self.picture:
            picture = {"type": "image_url", "image_url": {"url": self.picture}}
            shown[-1]["content"] = [picture, {"type": "text", "text": self.user}]
        body = {
            "messages": shown,
            "max_tokens": self.max_tokens,
            "temperature": 0,
            **({"n": self.n} if self.n > 1 else {}),
            **(json_format(self.people) if self.people else {"ignore_eos": True}),
            **({"continue_final_message": True, "add_generation_prompt": False} if self.beginning else {}),
        }
        return Request(body, self.max_tokens, self.n, exact=not self.people, keep=bool(self.beginning))


@dataclass(frozen=True, slots=True)
class Workload:
    """Sizes of a workload, in words (about as many tokens, and what the chat template adds)."""

    system_words: int
    user_words: int
    max_tokens: int
    requests: int
    people: int = 0  # in the JSON that each answer is; 0: text
    lines: int = 0  # of the Python file to edit; 0: none
    decoders: int = 0  # clients that decode while `requests` long prompts arrive one after another; 0: no such mix
    n: int = 1  # answers to each request
    turns: int = 1  # of each of the `requests` conversations
    clients: tuple[int, ...] = ()  # the numbers of clients that it runs with, if not those of the run
    after: str = ""  # the workload that runs straight before it
    restart: bool = False  # the server is stopped and started before it, and the prompts are those of `after` again
    busy: bool = False  # another process keeps a core busy meanwhile
    start: bool = False  # the server is started for it, and the time counts from there
    picture: int = 0  # pixels of the side of a picture before each text; 0: none
    same_picture: bool = False  # all clients show the same one

    def context(self) -> int:
        """Tokens that the longest request needs, prompt and answer, with room for other vocabularies."""
        words = self.system_words + self.user_words + (self.turns - 1) * (self.max_tokens + NEXT_WORDS)
        lines = self.lines + 2 * EDIT_EXAMPLE if self.lines else 0
        need = (words + lines * LINE_TOKENS) * 115 // 100 + SPARE_TOKENS + self.max_tokens
        need += PICTURE_TOKENS if self.picture else 0
        if self.decoders:
            need = max(need, DECODER.context())
        return -(-need // 256) * 256

    def quick(self) -> Workload:
        """The same with a quarter of the texts and of the answers."""
        quarter = {name: -(-getattr(self, name) // QUICK) for name in ("system_words", "max_tokens", "lines")}
        quarter["user_words"] = min(self.user_words, max(16, self.user_words // QUICK))  # enough for prompts to differ
        if self.people:  # an answer that is cut is no JSON: fewer people instead
            quarter |= {"people": 2, "max_tokens": self.max_tokens // 2}
        return replace(self, **quarter)


QUICK = 4
PICTURE_TOKENS = 1500  # at most, of the projectors that the rows are measured with
LINE_TOKENS = 10  # of a Python file, at most on average
MANY = 32  # clients from which on each sends one request
NEXT_WORDS = 40  # of each later turn of a conversation
CONVERSATIONS = 10  # there are at least so many in a plan of conversations, and more than clients
DECODER = Workload(system_words=0, user_words=40, max_tokens=256, requests=1)
WORKLOADS = {
    "short": Workload(system_words=0, user_words=40, max_tokens=64, requests=3),
    "busy": Workload(system_words=0, user_words=40, max_tokens=32, requests=1, busy=True),
    "prompt": Workload(system_words=0, user_words=350, max_tokens=64, requests=3),
    "shared": Workload(system_words=840, user_words=20, max_tokens=64, requests=2),
    "shared-warm": Workload(system_words=840, user_words=20, max_tokens=64, requests=2, after="shared"),
    "json": Workload(system_words=0, user_words=40, max_tokens=400, requests=2, people=PEOPLE),
    "edit": Workload(system_words=0, user_words=0, max_tokens=400, requests=1, lines=300),
    "turns": Workload(system_words=0, user_words=640, max_tokens=64, requests=2, turns=3),
    "image": Workload(system_words=0, user_words=20, max_tokens=32, requests=1, picture=512),
    "image-shared": Workload(system_words=0, user_words=20, max_tokens=32, requests=1, picture=512, same_picture=True),
    "n": Workload(system_words=0, user_words=350, max_tokens=64, requests=2, n=4),
    "long": Workload(system_words=0, user_words=2000, max_tokens=16, requests=3, decoders=4, clients=(5,)),
    "cold": Workload(system_words=0, user_words=6000, max_tokens=16, requests=1, clients=(1,)),
    "restart": Workload(system_words=0, user_words=6000, max_tokens=16, requests=1, clients=(1,), after="cold", restart=True),
    "start": Workload(system_words=0, user_words=40, max_tokens=8, requests=1, clients=(1,), start=True),
}
WARM_UP = Prompt(system="", user="Say something about the weather.", max_tokens=8)


@dataclass(frozen=True, slots=True)
class Script:
    """What is said in one turn: each lane is one client's prompts, in order; arrivals come while the lanes decode."""

    lanes: list[list[Prompt]]
    arrivals: list[Prompt]

    def plan(self) -> Plan:
        """What the load generator sends."""
        return Plan([[each.request() for each in lane] for lane in self.lanes], [each.request() for each in self.arrivals])

    def files(self) -> list[str]:
        """The text that holds the file of each prompt, in the order of the answers."""
        return [prompt.user for lane in self.lanes for prompt in lane]


@dataclass(frozen=True, slots=True)
class Planner:
    """Makes scripts; equal arguments give equal ones, so that every server gets the same prompts."""

    seed: int
    requests: int | None = None  # instead of the workload's own number
    quick: bool = False  # a quarter of the texts and of the answers

    def script(self, name: str, clients: int, round_: int) -> Script:
        """The prompts of workload `name` in round `round_`; `clients` is ignored by a workload with decoders."""
        workload, key = self.workload(name, clients), f"{self.seed} {clients} {round_}"
        if workload.restart:
            name = workload.after
        if workload.decoders:
            decoder = DECODER.quick() if self.quick else DECODER
            decoders = [self._lane(decoder, "", f"{key} decoder {lane}") for lane in range(workload.decoders)]
            return Script(decoders, self._lane(workload, "", f"{key} {name}"))
        system = _text(workload.system_words, f"{key} system")  # no workload's name: shared-warm repeats shared's
        shared = f"{key} picture" if workload.same_picture else ""
        return Script([self._lane(workload, system, f"{key} {name} {lane}", shared) for lane in range(clients)], [])

    def workload(self, name: str, clients: int) -> Workload:
        """The workload with the lengths and numbers of this run."""
        workload = WORKLOADS[name].quick() if self.quick else WORKLOADS[name]
        if self.requests is not None:
            return replace(workload, requests=self.requests)
        if workload.turns > 1:
            conversations = CONVERSATIONS // 2 if self.quick else CONVERSATIONS
            return replace(workload, requests=-(-conversations // clients))
        return replace(workload, requests=1) if clients >= MANY or self.quick else workload

    def _lane(self, workload: Workload, system: str, key: str, shared: str = "") -> list[Prompt]:
        """The prompts of one client; `shared` is the key of a picture that all of them show."""
        tokens, keys = workload.max_tokens, [f"{key} {number}" for number in range(workload.requests)]
        if workload.lines:
            return [_edit(workload, each) for each in keys]
        texts = [_text(workload.user_words - TASK_WORDS, each) for each in keys]
        if workload.people:
            task = JSON_TASK.format(people=workload.people)
            return [Prompt(system, text + task, tokens, people=workload.people) for text in texts]
        first = [Prompt(system, text + TASK, tokens, n=workload.n) for text in texts]
        if workload.picture:
            keyed = zip(first, keys, strict=True)
            first = [replace(prompt, picture=data_url(workload.picture, shared or each)) for prompt, each in keyed]
        return first + [
            self._next(prompt, turn, f"{key} {number}")
            for turn in range(1, workload.turns)
            for number, prompt in enumerate(first)
        ]

    def _next(self, prompt: Prompt, turn: int, key: str) -> Prompt:
        """A later turn of the conversation that `prompt` began: the client has put words of its own for every answer."""
        said = [prompt.user]
        for number in range(1, turn + 1):
            said += [
                _text(prompt.max_tokens, f"{key} answer {number}"),
                _text(NEXT_WORDS - TASK_WORDS, f"{key} {number}") + TASK,
            ]
        return replace(prompt, history=tuple(said[:-1]), user=said[-1])


def _edit(workload: Workload, key: str) -> Prompt:
    question, due = _edit_question(workload.lines, key)
    example, shown = _edit_question(EDIT_EXAMPLE, f"{key} example")
    begun = "\n".join(due.splitlines()[:EDIT_BEGUN]).rstrip()  # templates differ in what they make of white space there
    return Prompt("", question, workload.max_tokens, history=(example, f"{shown}```"), beginning=begun)


def _edit_question(lines: int, key: str) -> tuple[str, str]:
    """What the user asks, and the answer that is due."""
    file = python_file(lines, key)
    *_, last = re.findall(r"^def (\w+)", file, re.MULTILINE)
    renamed = re.sub(rf"\b{last}\b", f"new_{last}", file)
    return EDIT_TASK.format(name=last, file=file), f"```python\n{renamed}"


def _text(count: int, key: str) -> str:
    return " ".join(random.Random(key).choices(WORDS, k=count))
