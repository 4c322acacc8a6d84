"""Picture files in the sizes that models work on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from collectionlora.pocket.images import load_picture
from collectionlora.training.pictures import (
    fitted,
    fitted_size,
    read_picture,
    to_floats,
    to_pil,
    to_pixels,
    to_tensor,
)


@pytest.mark.parametrize(
    ("size", "long_side", "multiple", "square", "expected"),
    [
        ((4000, 3000), 1024, 32, False, (1024, 768)),
        ((3000, 4001), 1024, 32, False, (736, 1024)),
        ((500, 500), 1024, 32, False, (1024, 1024)),
        ((640, 480), 128, 16, True, (128, 128)),
        ((5000, 10), 1024, 32, False, (1024, 32)),
        ((100, 100), 100, 32, False, (96, 96)),
    ],
)
def test_sides_are_multiples_and_the_long_one_is_as_asked(
    size: tuple[int, int], long_side: int, multiple: int, square: bool, expected: tuple[int, int]
) -> None:
    assert fitted_size(*size, long_side, multiple, square) == expected


def test_a_square_is_what_the_pocket_reads(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "a.png"
    Image.fromarray(rng.integers(0, 256, (90, 140, 3), np.uint8)).save(path)
    ours = fitted(read_picture(path), 128, 16, square=True)
    theirs = torch.from_numpy(load_picture(path)).movedim(-1, 0)
    assert torch.equal(ours, theirs)


def test_a_picture_turned_by_a_note_is_read_upright(tmp_path: Path) -> None:
    picture = Image.new("RGB", (8, 4))
    picture.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "a.png", exif=exif)
    upright = read_picture(tmp_path / "a.png")
    assert upright.size == (4, 8)
    assert upright.getpixel((3, 0)) == (255, 0, 0)


def test_sixteen_bits_of_grey_are_read_as_eight(tmp_path: Path) -> None:
    Image.fromarray(np.arange(0, 65536, 257, np.uint16).reshape(16, 16)).save(tmp_path / "a.png")
    read = np.asarray(read_picture(tmp_path / "a.png"))
    assert (read[..., 0].ravel() == np.arange(256)).all()


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (255, 0, 255, 0)).save(tmp_path / "a.png")
    assert read_picture(tmp_path / "a.png").getpixel((0, 0)) == (255, 255, 255)


def test_tensors_and_pictures_are_inverse() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8))
    assert to_tensor(picture).shape == (3, 5, 7)
    assert to_pil(to_tensor(picture)).tobytes() == picture.tobytes()


def test_pixels_are_a_quarter_of_the_memory_and_exact() -> None:
    picture = to_tensor(Image.fromarray(np.arange(3 * 256, dtype=np.uint8).reshape(16, 16, 3)))
    assert to_pixels(picture).dtype == torch.uint8
    assert torch.equal(to_floats(to_pixels(picture)), picture)


def test_what_is_no_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"bad\.png is not a readable picture"):
        read_picture(tmp_path / "bad.png")
