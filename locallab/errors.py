"""Everything that can go wrong, as one tree. Knows no HTTP: each dialect has a table that maps it to status and body.

LocalLabError
├── ConfigError               a flag, environment variable, settings key or registry entry is wrong
├── RequestError              the request itself is wrong; sending it again will not help
│   ├── InvalidField          one field of it: carries `field`
│   ├── ContextLengthExceeded the prompt is longer than the context: carries both numbers
│   └── UnknownResponse       no response with this id is kept: carries `response_id`
├── AccessError               who asks may not
│   ├── Unauthorized          no key, or one that is not valid
│   ├── Forbidden             a host or an origin that is not allowed
│   └── RateLimited           too many requests: carries limit, remaining, reset and `retry_after`
├── ModelError
│   ├── UnknownModel          no such id in the registry: carries the nearest names
│   │   └── ModelNotLoaded    it is in the registry, but not loaded, and loading on demand is off
│   ├── ModelLoadError        the file cannot be loaded: carries the path and the reason
│   └── SourceError           the weights cannot be fetched
├── Overloaded                the queue is full; carries `retry_after` in seconds
├── EngineClosed              the engine is closing or closed
├── EngineFailure             llama.cpp failed while computing
├── TunnelError               the public address cannot be had, or is lost: carries `lasting`
└── ServerError               a server that a command asks refuses, breaks off, or is none of ours
    └── NoServer              nobody answers at its address: carries `url`
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


class LocalLabError(Exception):
    """Base of every error this package raises on purpose; `str(error)` is fit for a user."""


class ConfigError(LocalLabError):
    """A setting cannot be used. The message names where it came from, its key and what would be right."""


class RequestError(LocalLabError):
    """The request cannot be served as sent."""


class InvalidField(RequestError):
    """A field of the request is wrong. `field` is its name as the client sent it."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


class ContextLengthExceeded(RequestError):
    """The prompt does not fit the context; nothing was computed. Both figures are tokens."""

    def __init__(self, n_prompt_tokens: int, n_ctx: int) -> None:
        super().__init__(
            f"This model's maximum context length is {n_ctx} tokens. However, your request has {n_prompt_tokens} tokens"
            " (context window exceeded). Please reduce the length of the messages."
        )
        self.n_prompt_tokens = n_prompt_tokens
        self.n_ctx = n_ctx


class UnknownResponse(RequestError):
    """No response with this id is kept for this client, or not any more."""

    def __init__(self, response_id: str) -> None:
        super().__init__(f"Response with id {response_id!r} not found: it was never kept, or made room for later ones.")
        self.response_id = response_id


class AccessError(LocalLabError):
    """The request may be right, but who sends it may not."""


class Unauthorized(AccessError):
    """No API key, or one that is not valid."""


class Forbidden(AccessError):
    """The Host or the Origin of the request is not allowed; the message names the setting that would allow it."""


class RateLimited(AccessError):
    """Too many requests: more than `rule`, such as "10 per 1 second", allows.

    `limit` and `remaining` are requests in the longest window, `reset` seconds since the epoch, `retry_after` seconds.
    """

    def __init__(self, rule: str, limit: int, reset: int, retry_after: int, remaining: int = 0) -> None:
        super().__init__(f"rate limit exceeded: {rule}; try again in {retry_after} s")
        self.limit = limit
        self.remaining = remaining
        self.reset = reset
        self.retry_after = retry_after


class ModelError(LocalLabError):
    """A model cannot be found, fetched or loaded."""


class UnknownModel(ModelError):
    """No registry entry has this id."""

    def __init__(self, model_id: str, nearest: Sequence[str] = ()) -> None:
        hint = f"; did you mean {' or '.join(nearest)}?" if nearest else ""
        super().__init__(f"unknown model {model_id!r}{hint}")
        self.model_id = model_id
        self.nearest = tuple(nearest)


class ModelNotLoaded(UnknownModel):
    """The registry has this model, but it is not loaded, and requests do not load models here."""

    def __init__(self, model_id: str) -> None:
        ModelError.__init__(self, f"model {model_id!r} is not loaded; POST /models/load loads it")
        self.model_id = model_id
        self.nearest = ()


class ModelLoadError(ModelError):
    """A weights file cannot be loaded."""

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(f"cannot load {path}: {reason}")
        self.path = Path(path)
        self.reason = reason


class SourceError(ModelError):
    """The weights of a registry entry cannot be fetched; the message says what to do."""


class Overloaded(LocalLabError):
    """The queue is full. `retry_after` is a number of seconds after which there may be room."""

    def __init__(self, waiting: int, retry_after: int) -> None:
        super().__init__(f"the server is busy: {waiting} requests are waiting already")
        self.retry_after = retry_after


class EngineClosed(LocalLabError):
    """The engine is closing: it takes no new request, or it ended this one."""

    def __init__(self, message: str = "the engine is closed") -> None:
        super().__init__(message)


class EngineFailure(LocalLabError):
    """llama.cpp failed while computing; the message carries its return code."""


class TunnelError(LocalLabError):
    """The public address cannot be had, or is lost. `lasting`: trying again will not help, something must be set right."""

    def __init__(self, message: str, lasting: bool = False) -> None:
        super().__init__(message)
        self.lasting = lasting


class ServerError(LocalLabError):
    """A server that a command talks to cannot do what it is asked; the message says why."""


class NoServer(ServerError):
    """Nobody answers at this address."""

    def __init__(self, url: str) -> None:
        super().__init__(f"no server answers at {url}; start one with `locallab serve`, or name another with --url")
        self.url = url
