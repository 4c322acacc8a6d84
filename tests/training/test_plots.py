"""Plots are written whole."""

import math

import pytest
import torch
from PIL import Image

from collectionlora.training import plots
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
    plots.plot_similarity(tmp_path / "similarity.png", report.matrices(), report.names)
    width, height = size_of(tmp_path / "similarity.png")
    assert width > 2 * height
