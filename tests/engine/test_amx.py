"""Libraries whose compiler miscompiles AMX are recognized by its comments in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from locallab.engine import TextEngine, amx, llama
from locallab.settings import EngineSettings

COMMENT = b"\x7fELF...\0GCC: (%s) %s\0..."


@pytest.mark.parametrize(
    ("comments", "unsound"),
    [
        ([(b"Debian 12.2.0-14+deb12u1", b"12.2.0")], "GCC 12.2"),
        ([(b"Ubuntu 11.4.0-1ubuntu1~22.04", b"11.4.0")], "GCC 11.4"),
        ([(b"Ubuntu 13.2.0-23ubuntu4", b"13.2.0")], "GCC 13.2"),
        ([(b"Ubuntu 13.3.0-6ubuntu2~24.04", b"13.3.0")], None),
        ([(b"GNU", b"14.2.1 20250110")], None),
        ([(b"GNU", b"14.2.1"), (b"GNU", b"9.4.0")], "GCC 9.4"),
        ([], None),
    ],
    ids=str,
)
def test_the_oldest_compiler_counts(tmp_path: Path, comments: list[tuple[bytes, bytes]], unsound: str | None) -> None:
    library = tmp_path / "libggml-cpu.so"
    library.write_bytes(b"".join(COMMENT % each for each in comments))
    assert amx.unsound(library) == unsound


def test_a_build_without_amx_is_sound() -> None:
    assert amx.miscompiled("CPU : AVX2 = 1 | AMX_INT8 = 0") is None


def test_the_real_model_computes_whatever_compiled_llama_cpp(model_path: Path) -> None:
    """Where AMX is miscompiled and used, the process would end here."""
    engine = TextEngine(model_path, EngineSettings(context=256))
    engine.close()
    assert llama.build_features()["miscompiled_amx"] == llama.miscompiled_amx()
