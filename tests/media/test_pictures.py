from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from locallab.errors import MediaTooLarge, UnreadableMedia
from locallab.media import pictures
from locallab.media.attachment import digest
from locallab.media.pictures import RATIO, picture, pixels
from locallab.settings import MediaSettings
from tests.support.media_files import HEIGHT, PICTURES, WIDTH, damaged, drawn, gif, png, png_of_size, saved, turned

BOUNDS = MediaSettings()


def array(data: bytes) -> np.ndarray:
    width, height, found = pixels(picture(data, "here", BOUNDS))
    return np.frombuffer(found, np.uint8).reshape(height, width, 3)


@pytest.mark.parametrize("kind", PICTURES)
def test_every_format(kind: str) -> None:
    data = PICTURES[kind]()
    found = picture(data, "messages[0].content[1]", BOUNDS)
    assert (found.kind, found.format, found.width, found.height) == ("image", kind, WIDTH, HEIGHT)
    assert (found.data, found.digest, found.field) == (data, digest(data), "messages[0].content[1]")
    assert array(data).shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP"])
def test_the_pixels_are_what_was_drawn(kind: str) -> None:
    assert (array(PICTURES[kind]()) == np.asarray(drawn())).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_in_the_exif_is_applied(orientation: int) -> None:
    upright = array(turned(1)).astype(int)
    undone = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, -1),
        7: np.rot90(upright, 2).transpose(1, 0, 2),
        8: np.rot90(upright),
    }
    found = array(turned(orientation)).astype(int)
    assert found.shape == undone[orientation].shape
    assert abs(found - undone[orientation]).max() == 0


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_damaged_exif_is_no_reason_to_refuse_a_picture() -> None:
    data = saved(drawn(), "JPEG", exif=b"Exif\0\0MM\0*" + b"\xff" * 40)
    assert array(data).shape == (HEIGHT, WIDTH, 3)


def test_the_first_frame_of_an_animation() -> None:
    assert (array(gif("red", "blue", "lime")) == (255, 0, 0)).all()


@pytest.mark.parametrize(("mode", "kind"), [("RGBA", "PNG"), ("LA", "PNG"), ("RGBA", "WEBP")])
def test_what_is_transparent_is_shown_on_white(mode: str, kind: str) -> None:
    image = Image.new(mode, (4, 4))  # black, and nothing of it can be seen
    assert (array(saved(image, kind, **({"lossless": True} if kind == "WEBP" else {}))) == 255).all()


def test_a_transparent_colour_of_a_palette_is_white_too() -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([255, 0, 0, 0, 255, 0])
    assert (array(saved(image, "PNG", transparency=1)) == 255).all()
    assert (array(saved(image, "PNG", transparency=0)) == (0, 255, 0)).all()


def test_sixteen_bits_become_eight() -> None:
    levels = np.array([[0, 255, 256, 32768, 65535]] * 3, np.uint16)
    assert array(saved(Image.fromarray(levels), "PNG"))[0, :, 0].tolist() == [0, 0, 1, 128, 255]


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK"])
def test_other_modes(mode: str) -> None:
    assert array(saved(drawn(mode=mode), "JPEG" if mode == "CMYK" else "PNG")).shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize("side", [7072, 30_000, 2**31 - 1])
def test_a_bomb_is_refused_from_its_header(side: int) -> None:
    data = png_of_size(side, side)
    began = time.process_time()
    tracemalloc.start()
    with pytest.raises(MediaTooLarge, match=r"images\[0\]: has more than 50,000,000 pixels.*--media-pixels") as caught:
        picture(data, "images[0]", BOUNDS)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert caught.value.setting == "media_pixels"
    assert peak < 10 << 20 and time.process_time() - began < 5


def test_the_bound_is_a_setting() -> None:
    assert picture(png(10, 10), "x", MediaSettings(media_pixels=100)).width == 10
    with pytest.raises(MediaTooLarge, match="more than 99 pixels"):
        picture(png(10, 10), "x", MediaSettings(media_pixels=99))


def test_a_thread_is_no_picture() -> None:
    assert picture(png(RATIO, 1), "x", BOUNDS).width == RATIO
    with pytest.raises(UnreadableMedia, match=r"x: is 201 by 1 pixels; the longer side"):
        picture(png(RATIO + 1, 1), "x", BOUNDS)


@pytest.mark.parametrize("kind", ["TIFF", "ICO", "PPM", "PCX", "TGA"])
def test_other_formats_are_refused(kind: str) -> None:
    with pytest.raises(UnreadableMedia, match="is no picture that is known here: send one of PNG, JPEG, WebP, GIF and BMP"):
        picture(saved(drawn(16, 16), kind), "x", BOUNDS)


@pytest.mark.parametrize(
    "data", [b"", b"GIF", b"\x89PNG\r\n\x1a\n", b"BM", b"\xff\xd8\xff", b"RIFF0000WEBP", b"hello", b"<svg/>"]
)
def test_what_is_no_picture(data: bytes) -> None:
    with pytest.raises(UnreadableMedia, match=r"^x: is "):
        picture(data, "x", BOUNDS)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
def test_a_picture_whose_end_is_missing(kind: str) -> None:
    data = saved(drawn(64, 64), kind)
    with pytest.raises(UnreadableMedia, match=r"^x: is damaged"):
        pixels(picture(data[: len(data) // 2], "x", BOUNDS))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", PICTURES)
def test_damaged_pictures_do_no_harm(kind: str) -> None:
    data, bounds, refused = PICTURES[kind](), MediaSettings(media_pixels=1_000_000), 0
    for seed in range(400):
        try:
            width, height, found = pixels(picture(damaged(data, seed), "x", bounds))
            assert len(found) == 3 * width * height <= 3 * 1_000_000
        except (UnreadableMedia, MediaTooLarge):
            refused += 1
    assert 20 < refused < 400


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "I;16"])
@pytest.mark.parametrize("band", [1, 20, WIDTH * HEIGHT - 1])
def test_bands_make_up_the_picture(monkeypatch: pytest.MonkeyPatch, mode: str, band: int) -> None:
    image = drawn(mode="L").convert("I;16") if mode == "I;16" else drawn(mode=mode)
    data = saved(image, "PNG", **({"transparency": 3} if mode == "P" else {}))
    whole = array(data)
    monkeypatch.setattr(pictures, "BAND", band)
    assert (array(data) == whole).all() and whole.shape == (HEIGHT, WIDTH, 3)
