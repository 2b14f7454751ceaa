from __future__ import annotations

from pathlib import Path

import pytest

from locallab.cli.attachments import begins_with_file, content, data_url, part, pasted, readable
from locallab.errors import ConfigError
from tests.support.media_files import encoded, png, wav


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my pictures").mkdir()
    for name in ("a.png", "my pictures/b c.JPG", "it's.png"):
        (tmp_path / name).write_bytes(png())
    (tmp_path / "s.wav").write_bytes(wav())
    (tmp_path / "notes.txt").write_text("x")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_parts(folder: Path) -> None:
    assert part("a.png") == {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded(png())}"}}
    assert part("s.wav") == {"type": "input_audio", "input_audio": {"data": encoded(wav()), "format": "wav"}}
    assert data_url("notes.txt").startswith("data:application/octet-stream;base64,")
    with pytest.raises(ConfigError, match=r"none\.png: No such file or directory"):
        part("none.png")
    with pytest.raises(ConfigError, match="Is a directory"):
        part(".")


def test_content(folder: Path) -> None:
    assert content("x", []) == "x"
    both = content("x", [part("a.png"), part("s.wav")])
    assert [each["type"] for each in both] == ["image_url", "input_audio", "text"]  # type: ignore[index]
    assert readable(both) == "[picture]\n[sound]\nx" and readable("x") == "x"
    assert content("", [part("a.png")]) == [part("a.png")]


def test_pasted_paths(folder: Path) -> None:
    spaced = f"{folder}/my pictures/b c.JPG"
    for text, rest, found in (
        (f"{folder}/a.png", "", [f"{folder}/a.png"]),
        ("what is ./a.png about?", "what is about?", ["./a.png"]),
        (f"'{spaced}' and ./s.wav ?", "and ?", [spaced, "./s.wav"]),
        (f'"{spaced}"', "", [spaced]),
        (spaced.replace(" ", "\\ ") + " here", "here", [spaced]),
        ("it's in ./a.png", "it's in", ["./a.png"]),
        ("a\nb ./a.png", "a\nb", ["./a.png"]),
    ):
        assert pasted(text) == (rest, found), text


@pytest.mark.parametrize("text", ["a.png", "./none.png", "./notes.txt", "look at /etc", "", "it's", "./\0.png", "x/"])
def test_what_is_no_pasted_picture(folder: Path, text: str) -> None:
    assert pasted(text) == (text, [])


def test_a_line_that_begins_with_a_path_is_no_command(folder: Path) -> None:
    assert begins_with_file(f"{folder}/a.png what is it?") and begins_with_file(f"'{folder}/a.png'")
    assert not begins_with_file(f"/image {folder}/a.png") and not begins_with_file("/help") and not begins_with_file("")
