"""A conversation with a model on a server."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Mapping
from typing import Any

from locallab.cli.api_client import ApiClient, Piece
from locallab.cli.attachments import Content, Part, content, part, readable

Message = dict[str, Any]


class Talk:
    """A conversation: `messages` are those of the user and the model in turns, `sampling` is sent with each request, and
    `attached` with the next question."""

    def __init__(self, server: ApiClient, model: str, system: str = "", sampling: Mapping[str, Any] | None = None) -> None:
        self._server = server
        self.model = model
        self.system = system
        self.sampling = dict(sampling or {})
        self.messages: list[Message] = []
        self.attached: list[Part] = []

    @property
    def conversation(self) -> list[Message]:
        """The messages, after the system message if there is one."""
        return [*([_message("system", self.system)] if self.system else []), *self.messages]

    def ask(self, text: str) -> Generator[Piece, None, None]:
        """Yield the answer to `text` and what is attached.

        Closing the generator keeps the answer so far, and drops the question if there is none.
        """
        answer = ""
        self.messages.append(_message("user", content(text, self.attached)))
        self.attached = []
        try:
            for piece in self._server.chat(self.model, self.conversation, self.sampling):
                answer += piece.text
                yield piece
        finally:
            if answer.strip():
                self.messages.append(_message("assistant", answer))
            else:
                self.messages.pop()

    def attach(self, name: str) -> None:
        """Send a file with the next question. Raises ConfigError if it cannot be read."""
        self.attached.append(part(name))

    def takes_files(self) -> bool:
        """Return whether the model takes pictures or sounds. Raises ServerError."""
        return len(self._server.get(f"/models/status/{self.model}").get("modalities", ())) > 1

    def change(self, name: str, report: Callable[[str], None]) -> None:
        """Switch to another model, after loading it. Raises UnknownModel, ServerError."""
        model = self._server.model_id(name)
        if not self._server.get(f"/models/status/{model}")["loaded"]:
            report(f"loading {model} ...")
            self._server.post("/models/load", {"model_id": model})
        self.model = model

    def models(self) -> list[str]:
        """Return the names of the server's models."""
        return [model["name"] for model in self._server.models()]

    @functools.cached_property
    def known(self) -> list[str]:
        """The names of the server's models at first use."""
        return self.models()

    def markdown(self) -> str:
        """Return the conversation as a Markdown document."""
        headings = {"system": "System", "user": "You", "assistant": self.model}
        return "\n".join(f"## {headings[each['role']]}\n\n{readable(each['content']).strip()}\n" for each in self.conversation)


def _message(role: str, content: Content) -> Message:
    return {"role": role, "content": content}
