"""A conversation with a model on a server."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

from locallab.cli.api_client import ApiClient, Piece
from locallab.cli.attachments import Content, Part, content, part, readable
from locallab.errors import ConfigError

Message = dict[str, Any]
Pieces = Generator[Piece, None, None]

HEADINGS = {"system": "System", "developer": "System", "user": "You", "tool": "Tool"}


class Talk:
    """A conversation: `messages` are those of the user and the model in turns, `sampling` and `tools` are sent with each
    request, and `attached` with the next question. `thought` is the reasoning of the last answer.

    Closing the generator of an answer keeps what has come of it. Where nothing came, the conversation is as it was before, and
    the question is kept for `retry` and `edit`.
    """

    def __init__(self, server: ApiClient, model: str, system: str = "", sampling: Mapping[str, Any] | None = None) -> None:
        self._server = server
        self.model = model
        self.system = system
        self.sampling = dict(sampling or {})
        self.tools: list[Any] = []
        self.messages: list[Message] = []
        self.attached: list[Part] = []
        self.thought = ""
        self._failed: list[Message] | None = None

    @property
    def conversation(self) -> list[Message]:
        """The messages, after the system message if there is one."""
        return [*([_message("system", self.system)] if self.system else []), *self.messages]

    def ask(self, text: str) -> Pieces:
        """Yield the answer to `text` and what is attached. While calls of tools are open, `text` is the result of the first,
        and there is no answer before the last one has its result."""
        if calls := self.open_calls:
            self.messages = [*self.messages, {"role": "tool", "tool_call_id": calls[0]["id"], "content": text}]
            if len(calls) > 1:
                return
            asked = self.messages
        else:
            asked = [*self.messages, _message("user", content(text, self.attached))]
            self.attached = []
        yield from self._answer(asked)

    def retry(self) -> Pieces:
        """Return the answers to the last question once more; the new one takes the place of the old one.

        Raises ConfigError if there is no question.
        """
        self._last_question()
        asked = self._failed or self.messages
        if asked[-1]["role"] == "assistant" or (self.open_calls and not self._failed):
            asked = asked[: _last(asked, "assistant")]
        return self._answer(asked)

    @property
    def question(self) -> str:
        """The text of the last question. Raises ConfigError if there is none."""
        asked, index = self._last_question()
        return readable([each for each in _parts(asked[index]) if each["type"] == "text"])

    def edit(self, text: str) -> Pieces:
        """Return the answer to the last question as `text`, with its files. The question and what came after it are replaced.

        Raises ConfigError if there is no question.
        """
        asked, index = self._last_question()
        files = [each for each in _parts(asked[index]) if each["type"] != "text"]
        return self._answer([*asked[:index], _message("user", content(text, files))])

    def undo(self) -> str:
        """Take the last question and what came after it back; return its text. Raises ConfigError if there is none."""
        index = _last(self.messages, "user")
        if index is None:
            raise ConfigError("there is nothing to take back")
        taken = readable(self.messages[index].get("content"))
        self.restart(self.messages[:index])
        return taken

    def restart(self, messages: Sequence[Message] = ()) -> None:
        """Go on from these messages."""
        self.messages, self.thought, self._failed = list(messages), "", None

    @property
    def open_calls(self) -> Sequence[Mapping[str, Any]]:
        """The calls of tools in the last answer that have no result yet."""
        index = _last(self.messages, "assistant")
        if index is None or any(each["role"] == "user" for each in self.messages[index:]):
            return ()
        results = sum(each["role"] == "tool" for each in self.messages[index:])
        calls: Sequence[Mapping[str, Any]] = self.messages[index].get("tool_calls") or ()
        return calls[results:]

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
        return "\n".join(
            f"## {HEADINGS.get(each['role'], self.model)}\n\n{_readable(each).strip()}\n" for each in self.conversation
        )

    def _last_question(self) -> tuple[list[Message], int]:
        """Return the messages up to the last question, or up to one that got no answer, and where in them it is."""
        asked = self._failed or self.messages
        index = _last(asked, "user")
        if index is None:
            raise ConfigError("nothing has been asked yet")
        return asked, index

    def _answer(self, asked: list[Message]) -> Pieces:
        """Yield the answer to `asked`, which with it becomes the conversation."""
        texts: list[str] = []
        thoughts: list[str] = []
        ended = None
        calls: dict[int, Message] = {}
        before, self.messages = self.messages, asked
        try:
            sent = {**self.sampling, **({"tools": self.tools} if self.tools else {})}
            for piece in self._server.chat(self.model, self.conversation, sent):
                texts.append(piece.text)
                thoughts.append(piece.thought)
                ended = piece.finish_reason or ended
                for each in piece.calls:
                    _extend(calls, each)
                yield piece
        finally:
            text, thought = "".join(texts), "".join(thoughts)
            whole = list(calls.values()) if ended == "tool_calls" else []
            if text.strip() or whole:
                self.restart([*asked, _answered(text, thought, whole)])
            else:
                self.messages, self._failed = before, asked
            self.thought = thought


def described(call: Mapping[str, Any]) -> str:
    """Return the name and the arguments of a call."""
    arguments = call["function"]["arguments"]
    with contextlib.suppress(ValueError, RecursionError):
        arguments = json.dumps(json.loads(arguments), ensure_ascii=False)  # on one line
    return f"{call['function']['name']} {arguments}"


def _message(role: str, content: Content) -> Message:
    return {"role": role, "content": content}


def _answered(text: str, thought: str, calls: list[Message]) -> Message:
    """Return the assistant's message. Models go on with their reasoning after a call, so it has that then."""
    more = {"reasoning_content": thought} if thought else {}
    return {**_message("assistant", text), **more, "tool_calls": calls} if calls else _message("assistant", text)


def _extend(calls: dict[int, Message], piece: Mapping[str, Any]) -> None:
    """Add a piece of a call, in OpenAI's shape, to `calls`."""
    function = piece["function"]
    call = calls.setdefault(
        piece["index"], {"id": piece.get("id"), "type": "function", "function": {"name": function.get("name"), "arguments": ""}}
    )
    call["function"]["arguments"] += function.get("arguments") or ""


def _last(messages: Sequence[Message], role: str) -> int | None:
    return next((index for index in reversed(range(len(messages))) if messages[index]["role"] == role), None)


def _parts(message: Message) -> Sequence[Part]:
    whole: Content = message.get("content") or ""
    return [{"type": "text", "text": whole}] if isinstance(whole, str) else whole


def _readable(message: Message) -> str:
    calls = (f"`{described(call)}`" for call in message.get("tool_calls") or ())
    return "\n".join(filter(None, [readable(message.get("content")), *calls]))
