"""The tree of all errors of this package. Knows no HTTP: each dialect has a table that maps errors to status and body.

LocalLabError
├── ConfigError               a flag, environment variable, settings key or registry entry is wrong
├── RequestError              the request itself is wrong; a retry does not help
│   ├── InvalidField          a field is wrong: carries `field`
│   │   ├── NoChatTemplate    the model has no chat template
│   │   ├── TemplateExceeded  the model's chat template uses more than it may: carries the limit
│   │   ├── UnreadableMedia   a picture or a sound cannot be read, or its address cannot be fetched
│   │   └── MediaTooLarge     a picture or a sound exceeds a bound: carries the `setting` that raises it
│   ├── ContextLengthExceeded the prompt is longer than the context: carries both numbers
│   ├── SlowReader            the client does not read its stream: carries `unread` in bytes
│   └── UnknownResponse       no response with this id is stored: carries `response_id`
├── AccessError               the client lacks permission
│   ├── Unauthorized          no key, or an invalid one
│   ├── Forbidden             a host or an origin that is not allowed
│   │   └── AdminRequired     the key has the role "use", and the request needs "admin"
│   └── RateLimited           too many requests: carries limit, remaining, reset and `retry_after`
├── ModelError
│   ├── UnknownModel          no such id in the registry: carries the nearest ids
│   │   ├── NotServed         a repository on the Hub that no entry of the registry has
│   │   └── ModelNotLoaded    in the registry, but not loaded, and loading on demand is off
│   ├── ModelLoadError        the file cannot be loaded: carries the path and the reason
│   │   └── ModelSetAside     its load has ended a server: carries `retry_after` in seconds
│   ├── SourceError           the weights cannot be fetched
│   ├── NotOnDisk             the weights are not there, so that they cannot be removed
│   ├── NotRemovable          the weights are not LocalLab's, or in use, so that they cannot be removed
│   └── ModelsFixed           a cluster has the models of its configuration, and loads no others
├── Overloaded                the queue is full; carries `retry_after` in seconds
├── TooManyWatchers           enough clients watch the server already
├── KeysUnreadable            the file of API keys cannot be read, so that a key cannot be checked
├── SaveError                 a file of LocalLab's own cannot be written: carries `path`
├── EngineClosed              the engine is closing or closed
├── EngineFailure             llama.cpp failed while computing
│   └── EngineDied            the model's engine has ended; it is loaded again: carries `retry_after` in seconds
│       └── ReplicaGone       of a cluster, the replica that had the request has ended or cannot be reached
├── TunnelError               the public address is unavailable or lost: carries `lasting`
└── ServerError               a server that a command uses refuses, breaks off, or is no LocalLab server
    └── NoServer              nothing answers at its address: carries `url`
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path

LONGEST_NAME = 256
"""Characters of a model's name up to which similar ones are looked for: the time grows with their square."""
LONGEST_REASON = 4000
"""Characters of a reason that are shown: it may quote what the client sent."""


class LocalLabError(Exception):
    """Base of all errors that this package raises on purpose; `str(error)` is a message for users."""


class ConfigError(LocalLabError):
    """A setting cannot be used. The message names its source, its key and the allowed values."""


class RequestError(LocalLabError):
    """The request itself is wrong."""


class InvalidField(RequestError):
    """A field of the request is wrong; `field` is the name that the client sent."""

    def __init__(self, field: str, reason: str) -> None:
        self.field = field
        self.reason = reason if len(reason) <= LONGEST_REASON else f"{reason[:LONGEST_REASON]}..."
        super().__init__(f"{field}: {self.reason}")


class NoChatTemplate(InvalidField):
    """The model's file has no chat template: in which form it takes a conversation is unknown."""

    def __init__(self) -> None:
        super().__init__(
            "messages",
            "the model has no chat template, as one that was trained to continue text, not to answer: use /v1/completions or "
            "/generate, or serve it with --chat-template and a file or a name such as chatml",
        )


class TemplateExceeded(InvalidField):
    """Rendering the model's chat template takes more than `limit`, such as "1,000,000 loop steps"."""

    def __init__(self, template: str, limit: str) -> None:
        super().__init__("messages", f"{template} uses more than {limit}; serve the model with another one (--chat-template)")
        self.limit = limit


class UnreadableMedia(InvalidField):
    """A picture or a sound is damaged, of an unknown format, or at an address that is not fetched."""


class MediaTooLarge(InvalidField):
    """A picture or a sound exceeds a bound, whose `setting` is a field of MediaSettings."""

    def __init__(self, field: str, setting: str, reason: str) -> None:
        super().__init__(field, f"{reason} (--{setting.replace('_', '-')})")
        self.setting = setting


class ContextLengthExceeded(RequestError):
    """The prompt exceeds the context; nothing was computed. Both figures are tokens. `at_least`: it was not tokenized to its
    end, and has this many tokens or more."""

    def __init__(self, n_prompt_tokens: int, n_ctx: int, *, at_least: bool = False) -> None:
        count = f"at least {n_prompt_tokens}" if at_least else str(n_prompt_tokens)
        super().__init__(
            f"This model's maximum context length is {n_ctx} tokens. However, your request has {count} tokens"
            " (context window exceeded). Please reduce the length of the messages."
        )
        self.n_prompt_tokens = n_prompt_tokens
        self.n_ctx = n_ctx


class SlowReader(RequestError):
    """The client does not read its stream: `unread` bytes wait for it."""

    def __init__(self, unread: int) -> None:
        super().__init__(f"the answer was ended, as its stream is not read: {unread >> 10} KiB are waiting")
        self.unread = unread


class UnknownResponse(RequestError):
    """No response with this id is stored for this client, or not any more."""

    def __init__(self, response_id: str) -> None:
        super().__init__(f"Response with id {response_id!r} not found: it was never stored, or has been evicted.")
        self.response_id = response_id


class AccessError(LocalLabError):
    """The client may not send this request."""


class Unauthorized(AccessError):
    """The API key is missing or invalid."""


class Forbidden(AccessError):
    """The request's Host or Origin is not allowed; the message names the setting that allows it."""


class AdminRequired(Forbidden):
    """The request needs a key with the role "admin", and has one with the role "use"; `doing` names what it asks for."""

    def __init__(self, doing: str) -> None:
        super().__init__(
            f"{doing} needs an API key with the role admin, and this one has the role use;"
            " `locallab keys create --name NAME --role admin` creates one"
        )


class RateLimited(AccessError):
    """More requests than `rule`, such as "10 per 1 second", allows.

    `limit` and `remaining` are requests in the longest window, `reset` is in seconds since the epoch, `retry_after` in seconds.
    """

    def __init__(self, rule: str, limit: int, reset: int, retry_after: int, remaining: int = 0) -> None:
        super().__init__(f"rate limit exceeded: {rule}; try again in {retry_after} s")
        self.rule = rule
        self.limit = limit
        self.remaining = remaining
        self.reset = reset
        self.retry_after = retry_after


class ModelError(LocalLabError):
    """A model cannot be found, fetched or loaded."""


class UnknownModel(ModelError):
    """No registry entry has this id."""

    def __init__(self, model_id: str, nearest: Sequence[str] = ()) -> None:
        self.hint = f"; did you mean {' or '.join(nearest)}?" if nearest else ""
        super().__init__(f"unknown model {model_id!r}{self.hint}")
        self.model_id = model_id
        self.nearest = tuple(nearest)

    @classmethod
    def near(cls, model_id: str, known: Mapping[str, str]) -> UnknownModel:
        """Return the error with the ids that resemble `model_id`, at most three; `known` maps names in lower case to ids."""
        if len(model_id) > LONGEST_NAME:
            return cls(f"{model_id[:LONGEST_NAME]}...")
        names = difflib.get_close_matches(model_id.lower(), known, n=6, cutoff=0.5)
        return cls(model_id, list(dict.fromkeys(known[name] for name in names))[:3])


class NotServed(UnknownModel):
    """No registry entry has this source, and requests do not add any."""

    def __init__(self, name: str) -> None:
        self.hint = (
            f": requests load registered models only; start the server with --model {name}, or fetch it with /api/pull, "
            "or add it to models.yaml"
        )
        ModelError.__init__(self, f"unknown model {name!r}{self.hint}")
        self.model_id = name
        self.nearest = ()


class ModelNotLoaded(UnknownModel):
    """The model is in the registry but not loaded, and loading on demand is off."""

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


class ModelSetAside(ModelLoadError):
    """Loading it has ended an earlier server: only POST /models/load tries it again, from `retry_after` seconds on."""

    def __init__(self, model_id: str, reason: str, retry_after: int) -> None:
        super().__init__(model_id, reason)
        self.retry_after = retry_after


class SourceError(ModelError):
    """The weights of a registry entry cannot be fetched; the message names the remedy."""


class NotOnDisk(ModelError):
    """The weights to be removed are not there."""

    def __init__(self, model_id: str) -> None:
        super().__init__(f"{model_id} is not on disk: nothing to remove")


class NotRemovable(ModelError):
    """The weights cannot be removed; the reason follows the model's id in the message."""

    def __init__(self, model_id: str, reason: str) -> None:
        super().__init__(f"{model_id} {reason}")


class ModelsFixed(ModelError):
    """A cluster has the models that its configuration names, each in replicas of its own."""

    def __init__(self) -> None:
        super().__init__("this is a cluster: it has the models of its configuration; change that to have others")


class Overloaded(LocalLabError):
    """The queue is full; after `retry_after` seconds there may be room."""

    def __init__(self, waiting: int, retry_after: int) -> None:
        super().__init__(f"the server is busy: {waiting} requests are waiting already")
        self.retry_after = retry_after


class TooManyWatchers(LocalLabError):
    """As many clients watch what the server does as may, `most` in all or of one key or address (`each`)."""

    def __init__(self, most: int, each: bool) -> None:
        whose = "with this key, or from this address," if each else "in all"
        super().__init__(f"{most} clients {whose} watch already, and no more may: end a stream of /api/v1/events")
        self.most = most


class KeysUnreadable(LocalLabError):
    """The file of API keys, or Redis, cannot be read: the key of this request may be valid, but cannot be checked."""

    def __init__(self) -> None:
        super().__init__("the API key cannot be checked now: not all keys can be read; the server's log has the details")


class SaveError(LocalLabError):
    """A file of LocalLab's own cannot be written; what it held before stays."""

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(f"cannot write {path}: {reason}")
        self.path = Path(path)


class EngineClosed(LocalLabError):
    """The engine is closing or closed: it rejected or ended this request."""

    def __init__(self, message: str = "the engine is closed") -> None:
        super().__init__(message)


class EngineFailure(LocalLabError):
    """llama.cpp failed while computing; the message carries its return code."""


class EngineDied(EngineFailure):
    """The engine of a model has ended by itself. From `retry_after` seconds on, a request loads the model again."""

    def __init__(self, reason: str, retry_after: int = 2) -> None:
        super().__init__(f"the model's engine has failed: {reason}; try again in {retry_after} s, which loads the model again")
        self.reason = reason
        self.retry_after = retry_after


class ReplicaGone(EngineDied):
    """The replica of a cluster that had the request has ended, or cannot be reached."""

    def __init__(self, reason: str, retry_after: int = 2) -> None:
        EngineFailure.__init__(self, f"the replica that had the request is gone ({reason}); send it again")
        self.reason = reason
        self.retry_after = retry_after


def engine_failure(error: Exception) -> EngineFailure:
    """Return the error that a client gets for one that an engine met."""
    return error if isinstance(error, EngineFailure) else EngineFailure(f"internal error: {error}")


class TunnelError(LocalLabError):
    """The public address is unavailable or lost. `lasting` means that a retry does not help: something must be configured."""

    def __init__(self, message: str, lasting: bool = False) -> None:
        super().__init__(message)
        self.lasting = lasting


class ServerError(LocalLabError):
    """A server that a command uses cannot fulfil its request; the message has the reason."""


class NoServer(ServerError):
    """Nothing answers at this address."""

    def __init__(self, url: str) -> None:
        super().__init__(f"no server answers at {url}; start one with `locallab serve`, or name another with --url")
        self.url = url
