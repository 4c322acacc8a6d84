"""The picture of what outputs were recognised as is written whole."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from collectionlora.training.judging.confusion import plot_confusion

NAMES = ["frost", "glass", "stickers", "mirror"]


def test_confusion_is_drawn_with_missing_effects(tmp_path: Path) -> None:
    matrix = torch.eye(4, 6, dtype=torch.float64)
    matrix[2] = torch.nan
    path = tmp_path / "confusion.png"
    plot_confusion(path, matrix, NAMES, [*NAMES, "source", "broken"], "collection@8")
    with Image.open(path) as image:
        image.load()
        assert (image.format, min(image.size) > 300) == ("PNG", True)
