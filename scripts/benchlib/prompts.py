"""Prompts: what each workload sends, the same for every server in a round and new in the next round."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

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
JSON_TASK = "\nMake up six people with these words."
SCHEMA = {
    "type": "object",
    "properties": {
        "people": {
            "type": "array",
            "minItems": 6,
            "maxItems": 6,
            "items": {
                "type": "object",
                "properties": {
                    "first_name": {"type": "string", "maxLength": 12},
                    "favourite_colour": {"enum": ["red", "green", "blue", "yellow"]},
                    "years_of_experience": {"type": "integer", "minimum": 0, "maximum": 40},
                    "is_available_now": {"type": "boolean"},
                },
                "required": ["first_name", "favourite_colour", "years_of_experience", "is_available_now"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["people"],
    "additionalProperties": False,
}
"""What the answers of a JSON workload look like: much of it follows from the schema alone."""
JSON_FORMAT = {"response_format": {"type": "json_schema", "json_schema": {"name": "people", "schema": SCHEMA}}}
SPARE_TOKENS = 128  # what the chat template and its own system prompt may add


@dataclass(frozen=True, slots=True)
class Prompt:
    """One chat request: its texts, the length of its answer, and how many answers (`n`) it asks for.

    `history`: what user and assistant said before, alternating. `as_json` holds the answer to SCHEMA, with which it ends.
    """

    system: str
    user: str
    max_tokens: int
    as_json: bool = False
    n: int = 1
    history: tuple[str, ...] = ()

    def body(self) -> dict[str, Any]:
        """The request's fields, without those that every request has."""
        said = [("user", "assistant")[place % 2] for place in range(len(self.history))]
        messages = [*zip(said, self.history, strict=True), ("user", self.user)]
        return {
            "messages": [{"role": role, "content": text} for role, text in [("system", self.system), *messages] if text],
            "max_tokens": self.max_tokens,
            "temperature": 0,
            **({"n": self.n} if self.n > 1 else {}),
            **(JSON_FORMAT if self.as_json else {"ignore_eos": True}),
        }


@dataclass(frozen=True, slots=True)
class Workload:
    """Sizes of a workload, in words (about as many tokens, and what the chat template adds)."""

    system_words: int
    user_words: int
    max_tokens: int
    requests: int
    as_json: bool = False
    decoders: int = 0  # clients that decode while `requests` long prompts arrive one after another; 0: no such mix
    n: int = 1  # answers to each request
    turns: int = 1  # of each of the `requests` conversations
    clients: tuple[int, ...] = ()  # the numbers of clients that it runs with, if not those of the run
    after: str = ""  # the workload that runs straight before it
    restart: bool = False  # the server is stopped and started before it, and the prompts are those of `after` again

    def context(self) -> int:
        """Tokens that the longest request needs, prompt and answer, with room for other vocabularies."""
        words = self.system_words + self.user_words + (self.turns - 1) * (self.max_tokens + NEXT_WORDS)
        need = words * 115 // 100 + SPARE_TOKENS + self.max_tokens
        if self.decoders:
            need = max(need, DECODER.context())
        return -(-need // 256) * 256


NEXT_WORDS = 40  # of each later turn of a conversation
CONVERSATIONS = 10  # there are at least so many in a plan of conversations, and more than clients
DECODER = Workload(system_words=0, user_words=40, max_tokens=256, requests=1)
WORKLOADS = {
    "short": Workload(system_words=0, user_words=40, max_tokens=64, requests=3),
    "prompt": Workload(system_words=0, user_words=350, max_tokens=64, requests=3),
    "shared": Workload(system_words=840, user_words=20, max_tokens=64, requests=2),
    "shared-warm": Workload(system_words=840, user_words=20, max_tokens=64, requests=2, after="shared"),
    "json": Workload(system_words=0, user_words=40, max_tokens=400, requests=2, as_json=True),
    "turns": Workload(system_words=0, user_words=640, max_tokens=64, requests=2, turns=3),
    "n": Workload(system_words=0, user_words=350, max_tokens=64, requests=2, n=4),
    "long": Workload(system_words=0, user_words=2000, max_tokens=16, requests=3, decoders=4, clients=(5,)),
    "cold": Workload(system_words=0, user_words=6000, max_tokens=16, requests=1, clients=(1,)),
    "restart": Workload(system_words=0, user_words=6000, max_tokens=16, requests=1, clients=(1,), after="cold", restart=True),
}
WARM_UP = Prompt(system="", user="Say something about the weather.", max_tokens=8)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to send in one turn: each lane is one client's requests, in order; arrivals come while the lanes decode."""

    lanes: list[list[Prompt]]
    arrivals: list[Prompt]


@dataclass(frozen=True, slots=True)
class Planner:
    """Makes plans; equal arguments give equal plans, so that every server gets the same prompts."""

    seed: int
    requests: int | None = None  # instead of the workload's own number
    quick: bool = False  # answers of a quarter of the length

    def plan(self, name: str, clients: int, round_: int) -> Plan:
        """The plan of workload `name` in round `round_`; `clients` is ignored by a workload with decoders."""
        workload, key = WORKLOADS[name], f"{self.seed} {clients} {round_}"
        if workload.restart:
            name = workload.after
        if self.requests is not None:
            workload = replace(workload, requests=self.requests)
        elif workload.turns > 1:
            workload = replace(workload, requests=max(workload.requests, -(-CONVERSATIONS // clients)))
        if workload.decoders:
            decoders = [self._lane(DECODER, "", f"{key} decoder {lane}") for lane in range(workload.decoders)]
            return Plan(decoders, self._lane(workload, "", f"{key} {name}"))
        system = _text(workload.system_words, f"{key} system")  # no workload's name: shared-warm repeats shared's
        return Plan([self._lane(workload, system, f"{key} {name} {lane}") for lane in range(clients)], [])

    def _lane(self, workload: Workload, system: str, key: str) -> list[Prompt]:
        tokens = max(1, workload.max_tokens // 4) if self.quick else workload.max_tokens
        texts = [_text(workload.user_words - TASK_WORDS, f"{key} {number}") for number in range(workload.requests)]
        if workload.as_json:  # however quick the run: an answer that is cut is no JSON
            return [Prompt(system, text + JSON_TASK, workload.max_tokens, as_json=True) for text in texts]
        first = [Prompt(system, text + TASK, tokens, n=workload.n) for text in texts]
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


def _text(count: int, key: str) -> str:
    return " ".join(random.Random(key).choices(WORDS, k=count))
