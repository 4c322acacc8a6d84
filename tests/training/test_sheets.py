"""Sheets hold every picture untouched at its place."""

from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from PIL import ImageFont

from collectionlora.training import fonts, sheets
from collectionlora.training.randomness import generator


def picture(value, size=32):
    return torch.full((3, size, size), value)


def test_sheet_holds_every_picture_at_its_place():
    rows = [
        sheets.SheetRow("Frost", [picture(0.1), picture(0.2), None], "one-to-many"),
        sheets.SheetRow(
            "A rather long name of an effect that must wrap", [picture(v) for v in (0.4, 0.5, 0.6)]
        ),
    ]
    sheet = np.asarray(
        sheets.contact_sheet(rows, ["source", "truth\none draw", "teacher"], "Title", "note", cell=64)
    )
    for value in (0.1, 0.2, 0.4, 0.5, 0.6):
        ys, xs = np.nonzero((sheet == round(255 * value)).all(2))
        assert len(ys) >= 64 * 64
        block = sheet[ys.min() : ys.min() + 64, np.median(xs).astype(int)]
        assert len(block) == 64


def test_sheet_keeps_pixels_at_their_size_and_order_of_columns():
    image = torch.rand(3, 64, 64, generator=generator(0, "sheet"))
    sheet = sheets.contact_sheet([sheets.SheetRow("a", [picture(0.0, 64), image])], ["x", "y"], cell=64)
    pixels = np.asarray(sheet)
    expected = (image * 255).round().byte().permute(1, 2, 0).numpy()
    corner = np.argwhere((pixels == expected[0, 0]).all(2))
    assert any(np.array_equal(pixels[y : y + 64, x : x + 64], expected) for y, x in corner)
    black = np.argwhere((pixels == 0).all(2))
    assert black[:, 1].max() < corner[:, 1].max()


def test_sheet_without_rows_or_with_missing_pictures():
    assert sheets.contact_sheet([], ["source"]).width > 100
    with pytest.raises(ValueError, match="'a' has 1 pictures for 2 columns"):
        sheets.contact_sheet([sheets.SheetRow("a", [picture(0.1)])], ["x", "y"])


def test_names_have_the_letters_that_some_font_of_the_machine_has(monkeypatch):
    """Pillow's own font draws a box for them."""
    dejavu = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    monkeypatch.setattr(fonts, "FILES", ("nothing of that name.ttf", str(dejavu)))
    fonts._font_for.cache_clear()
    black = torch.zeros(3, 192, 192)
    box, letter, other = (sheets.named_grid([name], [black]).tobytes() for name in ("\U0010ffff", "Ж", "Ö"))
    assert len({box, letter, other}) == 3
    assert fonts.font_for(12, ["plain"]).getname() == ImageFont.load_default(12).getname()
    monkeypatch.setattr(fonts, "FILES", ())
    fonts._font_for.cache_clear()
    assert sheets.named_grid(["Ж"], [black]).tobytes() == box


def test_a_grid_of_many_large_pictures_is_made_smaller(monkeypatch):
    monkeypatch.setattr(sheets, "LARGEST_SHEET", 4 * 300 * 200)
    sheet = sheets.named_grid(["a"] * 4, [torch.rand(3, 400, 600)] * 4)
    assert sheet.width * sheet.height < 1.5 * 4 * 300 * 200
    assert sheet.width > 2 * 290
