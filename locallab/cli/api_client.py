"""A running server as the commands see it: where it is, what it is asked, and what goes wrong told in a line."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import ipaddress
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import click

from locallab import settings
from locallab.errors import ConfigError, NoServer, ServerError, UnknownModel
from locallab.settings import ServerSettings

if TYPE_CHECKING:
    import httpx

Command = TypeVar("Command", bound=Callable[..., Any])

CONNECT = 5.0
"""Seconds within which a server takes a connection."""

ANSWER = 60.0
"""Seconds within which it answers what needs no model. An answer of a model may take any time."""


def options(command: Command) -> Command:
    """Gives a click command --url and --api-key."""
    key = click.option(
        "--api-key", envvar="LOCALLAB_API_KEY", help="its key; better given as LOCALLAB_API_KEY, which nobody sees"
    )
    url = click.option(
        "--url", envvar="LOCALLAB_URL", help="the server to ask (LOCALLAB_URL)  [default: the one on this machine]"
    )
    return url(key(command))


def default_url() -> str:
    """The server on this machine, at the port that LOCALLAB_PORT says."""
    origin = [(f"LOCALLAB_{name.upper()}", {name: value}) for name, value in settings.environment(ServerSettings).items()]
    port = settings.resolve(ServerSettings, *(layer for layer in origin if "port" in layer[1])).port
    return f"http://127.0.0.1:{port or ServerSettings().port}"


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """A piece of an answer; `thought` is what the model says to itself. The last pieces bring why it ended, and `whole`: the
    usage, and of an assistant's task all that is told of the answer."""

    text: str = ""
    thought: str = ""
    finish_reason: str | None = None
    whole: Mapping[str, Any] | None = None


class ApiClient:
    """A server at `url` (None: the one on this machine). Raises NoServer, ServerError. To be closed."""

    def __init__(self, url: str | None = None, key: str | None = None) -> None:
        import httpx

        self.url = _base(url or default_url())
        self._has_key = bool(key)
        self._options: dict[str, Any] = {
            "base_url": self.url,
            "headers": {"authorization": f"Bearer {key}"} if key else {},
            "timeout": httpx.Timeout(ANSWER, connect=CONNECT),
            "trust_env": not _is_near(self.url),  # a proxy for the world is none for this machine
        }
        self._http = httpx.Client(**self._options)

    def __enter__(self) -> ApiClient:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def alive(self) -> bool:
        """Whether a LocalLab server answers there."""
        import httpx

        try:
            return _service(self._http.get("/health/live")) == "locallab"
        except httpx.TransportError:
            return False

    def get(self, path: str) -> Any:
        """The JSON at `path`."""
        with self._asking():
            return self._json(self._http.get(path))

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """The JSON that `path` answers, however long that takes."""
        with self._asking():
            return self._json(self._http.post(path, json=body, timeout=_patient()))

    def events(self, path: str, body: Mapping[str, Any]) -> Iterator[Any]:
        """The events of a stream as they come. Leaving the loop ends the answer."""
        with self._asking(), self._http.stream("POST", path, json={**body, "stream": True}, timeout=_patient()) as response:
            if response.status_code != 200:
                response.read()
                self._json(response)
            for line in response.iter_lines():
                if line.startswith("data: ") and line != "data: [DONE]":
                    yield self._event(line[6:])

    def asynchronous(self) -> httpx.AsyncClient:
        """A client for `aevents` that opens any number of connections."""
        import httpx

        return httpx.AsyncClient(**self._options, limits=httpx.Limits(max_connections=None))

    async def aevents(self, http: httpx.AsyncClient, path: str, body: Mapping[str, Any]) -> AsyncIterator[Any]:
        """As `events`, for many at once."""
        with self._asking():
            async with http.stream("POST", path, json={**body, "stream": True}, timeout=_patient()) as response:
                if response.status_code != 200:
                    await response.aread()
                    self._json(response)
                async for line in response.aiter_lines():
                    if line.startswith("data: ") and line != "data: [DONE]":
                        yield self._event(line[6:])

    @contextlib.contextmanager
    def keyless(self) -> Iterator[httpx.Client]:
        """A client that sends no key of itself, for requests that no other method makes."""
        import httpx

        with self._asking(), httpx.Client(**{**self._options, "headers": {}}) as http:
            yield http

    def chat(self, model: str, messages: Sequence[Mapping[str, str]], sampling: Mapping[str, Any]) -> Iterator[Piece]:
        """Answers a conversation."""
        body = {"model": model, "messages": list(messages), "stream_options": {"include_usage": True}, **sampling}
        return _ended(chat_piece(event) for event in self.events("/v1/chat/completions", body))

    def assist(self, task: str, body: Mapping[str, Any]) -> Iterator[Piece]:
        """Does a task of the programming assistant."""
        return _ended(_task_piece(event) for event in self.events(f"/api/v1/assistant/{task}", body))

    def models(self) -> list[dict[str, Any]]:
        """Every model of its registry, as /models/available tells of them."""
        found: list[dict[str, Any]] = self.get("/models/available")["models"]
        return found

    def model_id(self, name: str | None) -> str:
        """The id of the model of this name, alias or, for those named on the fly, origin; None: the one it has loaded.

        Raises UnknownModel with the nearest names, and ConfigError.
        """
        if name is None:
            return self._current()
        found = {each.lower(): model["name"] for model in self.models() for each in (*model["aliases"], model["name"])}
        if name.lower() in found:
            return str(found[name.lower()])
        if (same := self._adhoc(name)) is not None:
            return same
        raise UnknownModel(name, [found[near] for near in difflib.get_close_matches(name.lower(), found, n=3, cutoff=0.5)])

    def _current(self) -> str:
        current = self.get("/models/current")["name"]
        if current is None:
            raise ServerError(f"the server at {self.url} has no model loaded; name one")
        return str(current)

    def _adhoc(self, name: str) -> str | None:
        from locallab.models import adhoc

        if not adhoc.is_adhoc(name):
            return None
        about = adhoc.spec(name).description  # says the repository, or the whole path
        return next((str(model["name"]) for model in self.models() if model["description"] == about), None)

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        import httpx

        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout):
            raise NoServer(self.url) from None
        except httpx.TimeoutException:
            raise ServerError(f"the server at {self.url} does not answer") from None
        except httpx.TransportError:
            raise ServerError(f"the server at {self.url} broke off the answer") from None

    def _json(self, response: httpx.Response) -> Any:
        if response.status_code == 401:
            raise ServerError(self._keyless())
        try:
            body = response.json()
        except ValueError:
            raise self._alien() from None
        if response.status_code != 200:
            raise ServerError(_problem(body) or f"the server at {self.url} answers with status {response.status_code}")
        return body

    def _event(self, text: str) -> Any:
        try:
            event = json.loads(text)
        except ValueError:
            raise self._alien() from None
        if problem := _problem(event):
            raise ServerError(problem)
        return event

    def _alien(self) -> ServerError:
        return ServerError(f"what answers at {self.url} is no LocalLab server")

    def _keyless(self) -> str:
        if self._has_key:
            return f"the server at {self.url} does not take this key"
        return f"the server at {self.url} asks for a key: give it as LOCALLAB_API_KEY or --api-key; `locallab keys` makes one"


def _base(url: str) -> str:
    """The address as people write it, made whole: localhost:8000 and https://host/v1 will do."""
    whole = url if "://" in url else f"http://{url}"
    try:
        parts = urlsplit(whole)
        known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        known = False
    if not known:
        raise ConfigError(f"--url: {url!r} is no address such as http://127.0.0.1:8000")
    return whole.rstrip("/").removesuffix("/v1")


def _is_near(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _patient() -> httpx.Timeout:
    import httpx

    return httpx.Timeout(None, connect=CONNECT)


def _service(response: httpx.Response) -> object:
    try:
        body = response.json()
    except ValueError:
        return None
    return body.get("service") if isinstance(body, dict) else None


def _problem(body: Any) -> str | None:
    """What an error of any of our dialects says; None if it is none."""
    if not isinstance(body, dict):
        return None
    error = body.get("error")
    return (error.get("message") if isinstance(error, dict) else error) or (None if "result" in body else body.get("detail"))


def chat_piece(event: Mapping[str, Any]) -> Piece:
    """What an event of /v1/chat/completions brings."""
    usage = {"usage": event["usage"]} if event.get("usage") else None
    for choice in event["choices"]:
        delta = choice["delta"]
        thought = delta.get("reasoning_content") or delta.get("reasoning") or ""
        return Piece(delta.get("content") or "", thought, choice["finish_reason"], usage)
    return Piece(whole=usage)


def _task_piece(event: Mapping[str, Any]) -> Piece:
    if event["type"] == "done":
        return Piece(finish_reason=event["finish_reason"], whole=event)
    return Piece(event["text"])


def _ended(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """The pieces; raises ServerError if they stop before the answer has ended."""
    ended = False
    for piece in pieces:
        ended = ended or piece.finish_reason is not None
        yield piece
    if not ended:
        raise ServerError("the server broke off the answer")
