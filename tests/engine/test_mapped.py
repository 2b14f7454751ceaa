from __future__ import annotations

from pathlib import Path

import pytest

from locallab.engine import llama, mapped


def test_the_libraries_of_this_process() -> None:
    assert llama.build_features()  # llama.cpp is loaded
    assert any("ggml" in path.name for path in mapped.libraries(mapped.LLAMA))


@pytest.mark.parametrize(
    ("path", "matches"),
    [("/a b/libggml-cpu.so.0", True), ("/lib/libllama.so", True), ("/lib/libgomp.so.1", False), ("/x/ggml/y.so", False)],
)
def test_a_library_counts_by_its_name(tmp_path: Path, path: str, matches: bool) -> None:
    maps = tmp_path / "maps"
    line = f"7f00-7f01 r-xp 00000000 fe:00 12                         {path}\n"
    maps.write_text(2 * line + "7fff-8000 rw-p 00000000 00:00 0                          [stack]\n")
    assert mapped.libraries(mapped.LLAMA, maps) == [Path(path)] * matches


def test_a_system_that_does_not_tell(tmp_path: Path) -> None:
    assert mapped.libraries(mapped.LLAMA, tmp_path / "maps") == []
