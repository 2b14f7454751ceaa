from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from locallab import errors


def documented() -> dict[str, str | None]:
    """Return the tree in the docstring: name -> name of its parent."""
    parents: dict[str, str | None] = {}
    path: list[str] = []
    for line in inspect.cleandoc(errors.__doc__ or "").splitlines()[1:]:
        found = re.match(r"([│├└─ ]*)(\w+)", line)
        if found:
            depth = len(found[1]) // 4
            path[depth:] = [found[2]]
            parents[found[2]] = path[depth - 1] if depth else None
    return parents


def defined() -> dict[str, str | None]:
    classes = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if cls.__module__ == errors.__name__]
    return {cls.__name__: cls.__base__.__name__ if cls is not errors.LocalLabError else None for cls in classes}


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    assert len(documented()) > 5
    assert documented() == defined()


def test_every_error_says_what_it_is_for() -> None:
    for name in defined():
        assert getattr(errors, name).__doc__


MESSAGES = [
    (
        errors.InvalidField("top_p", "must be at most 1"),
        "top_p: must be at most 1",
        {"field": "top_p", "reason": "must be at most 1"},
    ),
    (
        errors.ContextLengthExceeded(20111, 16384),
        "This model's maximum context length is 16384 tokens. However, your request has 20111 tokens (context window exceeded)."
        " Please reduce the length of the messages.",
        {"n_prompt_tokens": 20111, "n_ctx": 16384},
    ),
    (errors.UnknownModel("smol"), "unknown model 'smol'", {"model_id": "smol", "nearest": ()}),
    (errors.UnknownModel("smol", ["a", "b"]), "unknown model 'smol'; did you mean a or b?", {"nearest": ("a", "b")}),
    (errors.ModelLoadError("/m/x.gguf", "no such file"), "cannot load /m/x.gguf: no such file", {"path": Path("/m/x.gguf")}),
    (errors.Overloaded(7, 3), "the server is busy: 7 requests are waiting already", {"retry_after": 3}),
    (errors.EngineClosed(), "the engine is closed", {}),
    (errors.EngineClosed("loading"), "loading", {}),
    (errors.SourceError("no network"), "no network", {}),
]


@pytest.mark.parametrize(("error", "message", "carried"), MESSAGES, ids=lambda value: type(value).__name__)
def test_message_and_what_it_carries(error: errors.LocalLabError, message: str, carried: dict[str, object]) -> None:
    assert str(error) == message
    assert {name: getattr(error, name) for name in carried} == carried


def test_a_long_name_is_not_compared_and_not_shown_whole() -> None:
    error = errors.UnknownModel.near("smollm2" * 200_000, {"smollm2": "smollm2"})
    assert len(str(error)) < 400 and not error.nearest
    assert errors.UnknownModel.near("smolm2", {"smollm2": "smollm2"}).nearest == ("smollm2",)


def test_a_reason_quotes_only_so_much_of_what_was_sent() -> None:
    error = errors.InvalidField("field", "got " + "x" * 1_000_000)
    assert len(str(error)) < 4100 and str(error).startswith("field: got xxx") and error.reason.endswith("...")
