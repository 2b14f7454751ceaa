"""A conversation with a model on a server: what was said, and what is asked next."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Mapping
from typing import Any

from locallab.cli.api_client import ApiClient, Piece

Message = dict[str, str]


class Talk:
    """`messages` are those of the user and the model in turns; `sampling` goes with every question."""

    def __init__(self, server: ApiClient, model: str, system: str = "", sampling: Mapping[str, Any] | None = None) -> None:
        self._server = server
        self.model = model
        self.system = system
        self.sampling = dict(sampling or {})
        self.messages: list[Message] = []

    @property
    def conversation(self) -> list[Message]:
        """The messages, the system's first if there is one."""
        return [*([_message("system", self.system)] if self.system else []), *self.messages]

    def ask(self, text: str) -> Generator[Piece, None, None]:
        """The answer to `text`, piece by piece. What came of it is kept, however the loop is left; where nothing came, the
        question is forgotten too."""
        said = ""
        self.messages.append(_message("user", text))
        try:
            for piece in self._server.chat(self.model, self.conversation, self.sampling):
                said += piece.text
                yield piece
        finally:
            if said.strip():
                self.messages.append(_message("assistant", said))
            else:
                self.messages.pop()

    def change(self, name: str, tell: Callable[[str], None]) -> None:
        """Goes on with another model, which is loaded first. Raises UnknownModel, ServerError."""
        model = self._server.model_id(name)
        if not self._server.get(f"/models/status/{model}")["loaded"]:
            tell(f"loading {model} ...")
            self._server.post("/models/load", {"model_id": model})
        self.model = model

    def models(self) -> list[str]:
        """The models there are."""
        return [model["name"] for model in self._server.models()]

    @functools.cached_property
    def known(self) -> list[str]:
        """The models there were when this was asked first."""
        return self.models()

    def markdown(self) -> str:
        """The conversation as a document."""
        headings = {"system": "System", "user": "You", "assistant": self.model}
        return "\n".join(f"## {headings[each['role']]}\n\n{each['content'].strip()}\n" for each in self.conversation)


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}
