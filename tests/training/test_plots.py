"""Plots are written whole; contact sheets hold every picture untouched at its place."""

import math
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

from collectionlora.training import fonts, plots
from collectionlora.training.prompting import choose_tags
from collectionlora.training.randomness import generator

NAMES = ["frost", "glass", "stickers", "mirror"]


def picture(value, size=32):
    return torch.full((3, size, size), value)


def size_of(path):
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        return image.size


def test_losses_are_drawn_with_gaps(tmp_path):
    cycles = list(range(30))
    terms = {name: (cycles, [math.exp(-c / 9) + 0.1 for c in cycles]) for name in ("ta_fm", "dmd_bs", "fake")}
    terms["dmd_ts"] = (cycles, [math.nan] * 30)
    plots.plot_losses(tmp_path / "four.png", terms)
    plots.plot_losses(tmp_path / "short.png", {"fm": ([0, 1], [1.0, 0.5])})
    four, one = size_of(tmp_path / "four.png"), size_of(tmp_path / "short.png")
    assert four[0] > 3 * one[0]
    assert four[1] == one[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["four.png", "short.png"]


def test_confusion_is_drawn_with_missing_effects(tmp_path):
    matrix = torch.eye(4, 6, dtype=torch.float64)
    matrix[2] = torch.nan
    plots.plot_confusion(
        tmp_path / "confusion.png", matrix, NAMES, [*NAMES, "source", "broken"], "collection@8"
    )
    assert min(size_of(tmp_path / "confusion.png")) > 300


@pytest.mark.parametrize("count", [1, 4])
def test_similarity_draws_the_matrices_of_a_tag_report(tmp_path, count):
    def embed(prompts):
        return torch.stack([torch.randn(8, generator=generator(0, prompt)) for prompt in prompts])

    report = choose_tags(embed, {name: f"make it {name}" for name in NAMES[:count]}, candidates=4)
    plots.plot_similarity(tmp_path / "similarity.png", report.matrices(), report.names, "prompts")
    width, height = size_of(tmp_path / "similarity.png")
    assert width > 2 * height


def test_sheet_holds_every_picture_at_its_place():
    rows = [
        plots.SheetRow("Frost", [picture(0.1), picture(0.2), None], "one-to-many"),
        plots.SheetRow(
            "A rather long name of an effect that must wrap", [picture(v) for v in (0.4, 0.5, 0.6)]
        ),
    ]
    sheet = np.asarray(
        plots.contact_sheet(rows, ["source", "truth\none draw", "teacher"], "Title", "note", cell=64)
    )
    for value in (0.1, 0.2, 0.4, 0.5, 0.6):
        ys, xs = np.nonzero((sheet == round(255 * value)).all(2))
        assert len(ys) >= 64 * 64
        block = sheet[ys.min() : ys.min() + 64, np.median(xs).astype(int)]
        assert len(block) == 64


def test_sheet_keeps_pixels_at_their_size_and_order_of_columns():
    image = torch.rand(3, 64, 64, generator=generator(0, "sheet"))
    sheet = plots.contact_sheet([plots.SheetRow("a", [picture(0.0, 64), image])], ["x", "y"], cell=64)
    pixels = np.asarray(sheet)
    expected = (image * 255).round().byte().permute(1, 2, 0).numpy()
    corner = np.argwhere((pixels == expected[0, 0]).all(2))
    assert any(np.array_equal(pixels[y : y + 64, x : x + 64], expected) for y, x in corner)
    black = np.argwhere((pixels == 0).all(2))
    assert black[:, 1].max() < corner[:, 1].max()


def test_sheet_without_rows_or_with_missing_pictures():
    assert plots.contact_sheet([], ["source"]).width > 100
    with pytest.raises(ValueError, match="'a' has 1 pictures for 2 columns"):
        plots.contact_sheet([plots.SheetRow("a", [picture(0.1)])], ["x", "y"])


def test_names_have_the_letters_that_some_font_of_the_machine_has(monkeypatch):
    """Pillow's own font draws a box for them."""
    dejavu = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    monkeypatch.setattr(fonts, "FILES", ("nothing of that name.ttf", str(dejavu)))
    fonts._font_for.cache_clear()
    black = torch.zeros(3, 192, 192)
    box, letter, other = (plots.named_grid([name], [black]).tobytes() for name in ("\U0010ffff", "Ж", "Ö"))
    assert len({box, letter, other}) == 3
    assert fonts.font_for(12, ["plain"]).getname() == ImageFont.load_default(12).getname()
    monkeypatch.setattr(fonts, "FILES", ())
    fonts._font_for.cache_clear()
    assert plots.named_grid(["Ж"], [black]).tobytes() == box


def test_a_grid_of_many_large_pictures_is_made_smaller(monkeypatch):
    monkeypatch.setattr(plots, "LARGEST_SHEET", 4 * 300 * 200)
    sheet = plots.named_grid(["a"] * 4, [torch.rand(3, 400, 600)] * 4)
    assert sheet.width * sheet.height < 1.5 * 4 * 300 * 200
    assert sheet.width > 2 * 290
