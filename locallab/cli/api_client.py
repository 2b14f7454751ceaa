"""A client of a running server, whose errors are messages for users."""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import json
import os
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import click

from locallab import settings
from locallab.cli.settings_options import layers
from locallab.errors import ConfigError, NoServer, ServerError, UnknownModel
from locallab.settings import ServerSettings

if TYPE_CHECKING:
    import httpx

Command = TypeVar("Command", bound=Callable[..., Any])
CUT_OFF = "the server stopped before the answer was complete"
HOW_TO_SEND_A_KEY = "set LOCALLAB_API_KEY or pass --api-key; `locallab keys` creates one"

UNIX = "unix:"
"""What begins the address of a Unix socket; its path follows."""

CONNECT = 5.0
"""Seconds to connect."""

ANSWER = 60.0
"""Seconds to answer a request that needs no model. A model's answer has no limit."""


def options(command: Command) -> Command:
    """Add --url and --api-key to a click command."""
    key = click.option(
        "--api-key",
        envvar=settings.variable("api_key"),
        help="API key; prefer LOCALLAB_API_KEY, which process listings do not show",
    )
    url = click.option(
        "--url",
        envvar=settings.variable("url"),
        help="server address, or unix:PATH (LOCALLAB_URL)  [default: this machine's]",
    )
    return url(key(command))


def default_url() -> str:
    """Return the address of this machine's server, as LOCALLAB_PORT, LOCALLAB_TLS_CERT and LOCALLAB_UDS say."""
    server = _local()
    if server.uds:
        return f"unix:{server.uds}"
    return f"{'https' if server.tls_cert else 'http'}://127.0.0.1:{server.port or ServerSettings().port}"


def _local() -> ServerSettings:
    """Return what the environment says of the address of this machine's server. Raises ConfigError."""
    known = ("port", "tls_cert", "uds")
    return settings.resolve(ServerSettings, *(layer for layer in layers(ServerSettings, {}) if layer[1].keys() & {*known}))


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """A piece of a streamed answer; `thought` is reasoning, `calls` are pieces of tool calls in OpenAI's shape.

    The last pieces have the finish reason, the timings, and `whole`: the usage, or the complete answer of an assistant task.
    """

    text: str = ""
    thought: str = ""
    finish_reason: str | None = None
    whole: Mapping[str, Any] | None = None
    calls: Sequence[Mapping[str, Any]] = ()
    timings: Mapping[str, Any] | None = None


class ApiClient:
    """A client of the server at `url`, by default this machine's. Methods raise NoServer and ServerError."""

    def __init__(self, url: str | None = None, key: str | None = None) -> None:
        import httpx

        self.url, is_local = _parse(url or default_url())
        self._has_key = bool(key)
        self._path = self.url.removeprefix(UNIX) if self.url.startswith(UNIX) else None
        self.trusted = _trusted(is_local) if self.url.startswith("https:") else None
        self._options: dict[str, Any] = {
            "base_url": self.url if self._path is None else "http://localhost",
            "headers": {"authorization": f"Bearer {key}"} if key else {},
            "timeout": httpx.Timeout(ANSWER, connect=CONNECT),
            "trust_env": not is_local,  # proxies are for remote servers only
            "verify": self.trusted or True,
        }
        with _usable_proxies():
            self._http = self._client()

    def __enter__(self) -> ApiClient:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._http.close()

    def _client(self, **options: Any) -> httpx.Client:
        import httpx

        transport = httpx.HTTPTransport(uds=self._path) if self._path else None
        return httpx.Client(**{**self._options, "transport": transport, **options})

    def alive(self) -> bool:
        """Return whether a LocalLab server answers."""
        import httpx

        try:
            body = self._http.get("/health/live").json()
        except (httpx.TransportError, ValueError):
            return False
        return isinstance(body, dict) and body.get("service") == "locallab"

    def get(self, path: str) -> Any:
        """Return the JSON at `path`."""
        with self._asking():
            return self._json(self._http.get(path))

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """Return the JSON answer of `path`, without a timeout."""
        with self._asking():
            return self._json(self._http.post(path, json=body, timeout=_patient()))

    def events(self, path: str, body: Mapping[str, Any]) -> Iterator[Any]:
        """Yield the events of a stream. Closing the iterator cancels the answer."""
        with self._asking(), self._http.stream("POST", path, json={**body, "stream": True}, timeout=_patient()) as response:
            if response.status_code != 200:
                response.read()
                self._json(response)
            for line in response.iter_lines():
                if line.startswith("data: ") and line != "data: [DONE]":
                    yield self._event(line[6:])

    @contextlib.contextmanager
    def keyless(self) -> Iterator[httpx.Client]:
        """Yield a client without the API key, for requests that set their own headers."""
        with self._asking(), self._client(headers={}) as http:
            yield http

    def chat(self, model: str, messages: Sequence[Mapping[str, Any]], sampling: Mapping[str, Any]) -> Iterator[Piece]:
        """Yield the answer to a conversation."""
        body = {"model": model, "messages": list(messages), "stream_options": {"include_usage": True}, **sampling}
        return _ended(chat_piece(event) for event in self.events("/v1/chat/completions", body))

    def assist(self, task: str, body: Mapping[str, Any]) -> Iterator[Piece]:
        """Yield the answer to a task of the programming assistant."""
        return _ended(
            Piece(finish_reason=event["finish_reason"], whole=event) if event["type"] == "done" else Piece(event["text"])
            for event in self.events(f"/api/v1/assistant/{task}", body)
        )

    def models(self) -> list[dict[str, Any]]:
        """Return the models of the server's registry, as /models/available describes them."""
        found: list[dict[str, Any]] = self.get("/models/available")["models"]
        return found

    def model_id(self, name: str | None) -> str:
        """Return the id of a model by name, alias or, if named on the fly, origin; of the loaded model for None.

        Raises UnknownModel with the nearest names, and ConfigError.
        """
        if name is None:
            current = self.get("/models/current")["name"]
            if current is None:
                raise ServerError(f"the server at {self.url} has no model loaded; name one")
            return str(current)
        models = self.models()
        known = {each.lower(): str(model["name"]) for model in models for each in (*model["aliases"], model["name"])}
        if name.lower() in known:
            return known[name.lower()]
        from locallab.models import adhoc

        if adhoc.is_adhoc(name):
            origin = adhoc.spec(name).description  # names the repository, or the whole path
            for model in models:
                if model["description"] == origin:
                    return str(model["name"])
        raise UnknownModel.near(name, known)

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        import httpx

        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                reason = str(error).partition("verify failed: ")[2].partition(" (_ssl")[0] or error
                raise ServerError(
                    f"the certificate of the server at {self.url} is not trusted: {reason}; "
                    "SSL_CERT_FILE names the certificates of other authorities"
                ) from None
            raise NoServer(self.url) from None
        except httpx.TimeoutException:
            raise ServerError(f"the server at {self.url} does not answer") from None
        except httpx.TransportError:
            raise ServerError(f"the connection to {self.url} broke before the answer was complete") from None

    def _json(self, response: httpx.Response) -> Any:
        if response.status_code == 401:
            problem = "rejects this API key" if self._has_key else f"requires an API key: {HOW_TO_SEND_A_KEY}"
            raise ServerError(f"the server at {self.url} {problem}")
        try:
            body = response.json()
        except ValueError:
            raise self._alien() from None
        if response.status_code != 200:
            raise ServerError(_problem(body) or f"the server at {self.url} answered with status {response.status_code}")
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
        return ServerError(f"the server at {self.url} is not LocalLab")


def _trusted(is_local: bool) -> ssl.SSLContext | None:
    """Return what certificates to trust: those in SSL_CERT_FILE or, for this machine's server, its own, whatever names it is
    for; None: those of the public authorities. Raises ConfigError."""
    file, own = os.environ.get("SSL_CERT_FILE"), _local().tls_cert if is_local else None
    if not file and not own:
        return None
    context = ssl.create_default_context()
    for name, path in (("SSL_CERT_FILE", file), (settings.variable("tls_cert"), own)):
        try:
            if path:
                context.load_verify_locations(path)
        except OSError as error:
            reason = error.strerror or error
            raise ConfigError(f"{name}: {path} holds no certificates that can be read: {reason}") from None
    if own:
        context.check_hostname = False
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


@contextlib.contextmanager
def _usable_proxies() -> Iterator[None]:
    """Raise ConfigError for a proxy in the environment that httpx cannot use."""
    try:
        yield
    except (ImportError, ValueError) as error:  # SOCKS without its package, an unknown scheme
        raise ConfigError(
            f"{', '.join(_proxies())}: {error}; name a proxy such as http://127.0.0.1:8080, or unset it"
        ) from None


def _proxies() -> list[str]:
    """Return the environment's variables that name proxies, with their values."""
    names = ("all_proxy", "http_proxy", "https_proxy")
    return [f"{name}={value}" for name, value in os.environ.items() if value and name.lower() in names]


def _parse(url: str) -> tuple[str, bool]:
    """Return the base of an address such as localhost:8000 or https://host/v1, and whether it is loopback.

    Raises ConfigError.
    """
    if url.startswith(UNIX) and len(url) > len(UNIX):
        return UNIX + os.path.abspath(url.removeprefix(UNIX)), True
    whole = url if "://" in url else f"http://{url}"
    try:
        parts = urlsplit(whole)
        host = parts.hostname if parts.scheme in ("http", "https") and parts.port != 0 else None
    except ValueError:
        host = None
    if not host:
        raise ConfigError(f"--url: {url!r} is not an address such as http://127.0.0.1:8000, or unix: and a path")
    try:
        is_local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_local = host == "localhost"
    return whole.rstrip("/").removesuffix("/v1"), is_local


def _patient() -> httpx.Timeout:
    import httpx

    return httpx.Timeout(None, connect=CONNECT)


def _problem(body: Any) -> str | None:
    """Return the message of an error in any dialect, or None if `body` is no error."""
    if not isinstance(body, dict):
        return None
    error = body.get("error")
    return (error.get("message") if isinstance(error, dict) else error) or (None if "result" in body else body.get("detail"))


def chat_piece(event: Mapping[str, Any]) -> Piece:
    """Return an event of /v1/chat/completions as a piece."""
    usage = {"usage": event["usage"]} if event.get("usage") else None
    for choice in event["choices"]:
        delta = choice["delta"]
        thought = delta.get("reasoning_content") or delta.get("reasoning") or ""
        calls = delta.get("tool_calls") or ()
        return Piece(delta.get("content") or "", thought, choice["finish_reason"], usage, calls, event.get("timings"))
    return Piece(whole=usage, timings=event.get("timings"))


def _ended(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """Yield the pieces. Raises ServerError if none has a finish reason."""
    ended = False
    for piece in pieces:
        ended = ended or piece.finish_reason is not None
        yield piece
    if not ended:
        raise ServerError(CUT_OFF)
