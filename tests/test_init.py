from __future__ import annotations

import subprocess
import sys

import pytest

import locallab


def test_the_public_names_are_these() -> None:
    assert sorted(locallab.__all__) == ["Answer", "Engine", "Server", "__version__", "start"]
    assert [name for name in locallab.__all__ if getattr(locallab, name).__doc__ is None] == []


def test_no_other_name() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Engin'"):
        locallab.Engin  # noqa: B018


def test_importing_the_package_loads_neither_llama_cpp_nor_the_server() -> None:
    heavy = ("llama_cpp", "starlette", "numpy", "locallab.inprocess")
    code = f"import sys, locallab; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
